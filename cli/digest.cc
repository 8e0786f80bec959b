#include <array>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/json.h"
#include "cli/output.h"
#include "reshard/compare.h"

namespace llmctl::cli {
namespace {

struct DigestFlags {
  std::vector<std::string> paths;
  SourceFlags about_source;
  int64_t jobs = 1;
  bool tensors = false, json = false;
};

Json digest_json(const std::string& path, const reshard::ModelDigest& digest, bool with_tensors) {
  Json json = {{"path", path}, {"digest", digest.digest}};
  if (with_tensors) {
    json["tensors"] = Json::array();
    for (const reshard::TensorDigest& tensor : digest.tensors) {
      json["tensors"].push_back({{"tensor", tensor.key}, {"digest", tensor.digest}});
    }
  }
  return json;
}

std::string digest_text(const std::string& path, const reshard::ModelDigest& digest,
                        bool with_tensors) {
  std::string text;
  if (with_tensors) {
    for (const reshard::TensorDigest& tensor : digest.tensors) {
      text += tensor.digest + "  " + printable(tensor.key) + "\n";
    }
  }
  return text + digest.digest + "  " + printable(path, 4000) + "\n";
}

ExitCode run_digest(const DigestFlags& flags) {
  Json all = Json::array();
  for (const std::string& path : flags.paths) {
    const reshard::Model model = reshard::open_model(
        path,
        {.family_file = flags.about_source.family_file, .settings = flags.about_source.settings()});
    const reshard::ModelDigest digest = reshard::digest(model, static_cast<int>(flags.jobs));
    if (flags.json) {
      all.push_back(digest_json(path, digest, flags.tensors));
    } else {
      write_stdout(digest_text(path, digest, flags.tensors));
    }
  }
  if (flags.json) print_json(all);
  return ExitCode::kDone;
}

}  // namespace

Run add_digest(CLI::App& verb) {
  const auto flags = std::make_shared<DigestFlags>();
  add_paths(verb, "CKPT", flags->paths, "Checkpoints, in any format and layout");
  verb.add_flag("--tensors", flags->tensors, "Print every tensor's own digest too");
  verb.add_flag("--json", flags->json, "Print one JSON array with an object per checkpoint");
  add_jobs(verb, flags->jobs);
  flags->about_source.add(verb);
  static constexpr std::array<std::string_view, 2> kExamples = {"digest ./bloom-560m ./bloom-ft",
                                                                "digest ./llama --tensors --json"};
  set_examples(verb, kExamples);
  return [flags] { return run_digest(*flags); };
}

}  // namespace llmctl::cli
