#include "tests/support/command.h"

#include <sys/wait.h>

#include <cstdlib>
#include <fstream>
#include <iterator>

#include "tests/support/temp_dir.h"
#include "tests/support/test_data.h"

namespace llmctl::test {
namespace {

std::string quoted(const std::filesystem::path& path) { return "'" + path.string() + "'"; }

}  // namespace

std::string file_text(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

CommandResult run_script(const std::string& script, const std::filesystem::path& folder) {
  // What the harness writes stays out of the folder that the script sees.
  const TempDir work;
  std::ofstream(work / "script") << "LLMCTL=" << quoted(llmctl_binary())
                                 << "\nllmctl() { \"$LLMCTL\" \"$@\"; }\n"
                                 << "SOURCE=" << quoted(source_root()) << "\n"
                                 << "TMP=" << quoted(folder) << "\n"
                                 << "export SOURCE TMP NO_COLOR=1 LC_ALL=C.UTF-8\n"
                                 << script << "\n";
  const std::string line = "cd " + quoted(folder) + " && sh " + quoted(work / "script") + " >" +
                           quoted(work / "out") + " 2>" + quoted(work / "err") + " </dev/null";
  const int status = std::system(line.c_str());
  CommandResult result;
  result.out = file_text(work / "out");
  result.err = file_text(work / "err");
  result.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return result;
}

}  // namespace llmctl::test
