#include "cli/run_data.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <span>
#include <sstream>
#include <utility>

#include "cli/output.h"
#include "cli/run_input.h"
#include "cli/run_output.h"
#include "formats/core/error.h"
#include "formats/core/file.h"
#include "formats/json.h"

namespace llmctl::cli {
namespace {

/// What answer lines have beside the fields of their input.
constexpr const char* kAnswerFields[] = {"output", "outputs", "output_ids", "answers"};

double get_number(const Json& value, const std::string& name) {
  if (!value.is_number()) throw_invalid("", "'" + name + "' is not a number", "");
  return value.get<double>();
}

std::vector<int32_t> get_ids(const Json& value, const std::string& name) {
  std::vector<int32_t> ids;
  if (!value.is_array()) throw_invalid("", "'" + name + "' is not a list of token ids", "");
  for (const Json& item : value) {
    const int64_t id = formats::get_size(item, "", name);
    if (id > INT32_MAX) throw_invalid("", "'" + name + "' has an id beyond 2^31", "");
    ids.push_back(static_cast<int32_t>(id));
  }
  return ids;
}

std::string get_text(const Json& value, const std::string& name) {
  if (!value.is_string()) throw_invalid("", "'" + name + "' is not a text", "");
  return value.get<std::string>();
}

/// The line's own values for options, by the names of the flags.
void override_options(const Json& line, runtime::GenerateRequest& request) {
  const auto real = [&](const char* name, double& target) {
    if (line.contains(name)) target = get_number(line[name], name);
  };
  const auto whole = [&](const char* name, int64_t& target) {
    if (line.contains(name)) target = formats::get_size(line[name], "", name);
  };
  whole("max_new_tokens", request.max_new_tokens);
  whole("min_new_tokens", request.rules.min_new_tokens);
  real("temperature", request.sampling.temperature);
  whole("top_k", request.sampling.top_k);
  real("top_p", request.sampling.top_p);
  real("min_p", request.sampling.min_p);
  real("typical_p", request.sampling.typical_p);
  real("repetition_penalty", request.rules.repetition_penalty);
  real("presence_penalty", request.rules.presence_penalty);
  real("frequency_penalty", request.rules.frequency_penalty);
  int64_t seed = -1;
  whole("seed", seed);
  if (seed >= 0) request.sampling.seed = static_cast<uint64_t>(seed);
  if (line.contains("stop")) {
    const Json& stop = line["stop"];
    request.stop_strings.clear();
    if (!stop.is_array()) {
      request.stop_strings.push_back(get_text(stop, "stop"));
    } else {
      for (const Json& item : stop) request.stop_strings.push_back(get_text(item, "stop"));
    }
  }
  if (line.contains("stop_ids")) {
    for (const int32_t id : get_ids(line["stop_ids"], "stop_ids")) request.stop_ids.push_back(id);
  }
}

std::vector<int32_t> prompt_ids(const Json& line, const runtime::Tokenizer* tokenizer) {
  const char* const fields[] = {"src", "prompt", "token_ids"};
  const char* found = nullptr;
  for (const char* field : fields) {
    if (!line.contains(field)) continue;
    if (found != nullptr) {
      throw_invalid("", std::string("has both '") + found + "' and '" + field + "'",
                    "give the prompt once");
    }
    found = field;
  }
  if (found == nullptr) {
    throw_invalid("", "has no prompt", "give it as 'src', 'prompt' or 'token_ids'");
  }
  if (std::string_view(found) == "token_ids") return get_ids(line[found], found);
  const Json* text = &line[found];
  if (text->is_array() && !text->empty()) text = &text->front();
  if (tokenizer == nullptr) {
    throw_invalid("", std::string("'") + found + "' is a text, and the model has no tokenizer",
                  "give 'token_ids'");
  }
  return encode_prompt(*tokenizer, get_text(*text, found));
}

Json answer_line(const DataLine& line, const runtime::GenerateResult& result,
                 const RunOptions& options, const runtime::Tokenizer* tokenizer,
                 const std::vector<int64_t>& eos_ids) {
  Json out = line.input;
  const bool several = !result.others.empty();
  if (tokenizer != nullptr) {
    out["output"] = answer_text(tokenizer, line.request, result.ids);
    if (several) {
      Json& outputs = out["outputs"] = Json::array({out["output"]});
      for (const auto& other : result.others) {
        outputs.push_back(answer_text(tokenizer, line.request, other.ids));
      }
    }
  } else {
    out["output_ids"] = result.ids;
  }
  if (!options.json && options.decoding.logprobs < 0) return out;
  Json& answers = out["answers"] = Json::array();
  answers.push_back(answer_json(tokenizer, line.request, result, eos_ids));
  for (const auto& other : result.others) {
    answers.push_back(answer_json(tokenizer, line.request, other, eos_ids));
  }
  return out;
}

/// The answers file: lines are appended whole.
class AnswerFile {
 public:
  AnswerFile(const RunOptions& options, const std::vector<DataLine>& lines)
      : path_(options.output_file) {
    if (path_.empty()) return;
    if (std::filesystem::exists(path_)) {
      if (options.resume) {
        num_done_ = count_done(lines);
      } else if (!options.overwrite) {
        throw_usage(path_, "exists",
                    "give --resume to continue it, --overwrite to replace it, or another name");
      }
    }
    const int flags = O_WRONLY | O_CREAT | O_CLOEXEC | O_APPEND | (options.resume ? 0 : O_TRUNC);
    descriptor_ = ::open(path_.c_str(), flags, 0666);
    // What a killed run left of a line goes.
    if (descriptor_ < 0 || (options.resume && ::ftruncate(descriptor_, whole_bytes_) != 0)) {
      throw Error(ErrorCode::kEnvironment, std::strerror(errno), path_);
    }
  }
  ~AnswerFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  AnswerFile(const AnswerFile&) = delete;
  AnswerFile& operator=(const AnswerFile&) = delete;

  size_t num_done() const { return num_done_; }

  void append(const std::string& line) {
    if (descriptor_ < 0) return write_stdout(line);
    size_t written = 0;
    while (written < line.size()) {
      const ssize_t n = ::write(descriptor_, line.data() + written, line.size() - written);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) throw Error(ErrorCode::kEnvironment, std::strerror(errno), path_);
      written += static_cast<size_t>(n);
    }
  }

 private:
  /// Whole lines that are there, each of which must answer the input line in its place.
  size_t count_done(const std::vector<DataLine>& lines) {
    const std::string text = read_text_file(path_);
    size_t count = 0, begin = 0;
    for (;; ++count) {
      const size_t end = text.find('\n', begin);
      if (end == std::string::npos) break;
      const std::string where = path_ + ":" + std::to_string(count + 1);
      Json answer = formats::parse_json(std::string_view(text).substr(begin, end - begin), where);
      if (answer.is_object()) {
        for (const char* field : kAnswerFields) answer.erase(field);
      }
      Json input = count < lines.size() ? lines[count].input : Json();
      if (input.is_object()) {
        for (const char* field : kAnswerFields) input.erase(field);
      }
      if (count >= lines.size() || answer != input) {
        throw_usage(where, "is no answer to line " + std::to_string(count + 1) + " of the input",
                    "the input has changed: give --overwrite to start again, or another name");
      }
      begin = end + 1;
    }
    whole_bytes_ = static_cast<off_t>(begin);
    return count;
  }

  std::string path_;
  int descriptor_ = -1;
  size_t num_done_ = 0;
  off_t whole_bytes_ = 0;
};

}  // namespace

std::vector<DataLine> read_data_file(const std::string& path,
                                     const runtime::GenerateRequest& defaults,
                                     bool choose_max_new_tokens,
                                     const runtime::Tokenizer* tokenizer,
                                     const ModelConfig& config) {
  std::istringstream stream(read_text_file(path));
  std::vector<DataLine> lines;
  size_t number = 0;
  for (std::string text; std::getline(stream, text);) {
    ++number;
    if (text.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string where = path + ":" + std::to_string(number);
    try {
      DataLine line;
      line.input = formats::parse_json(text, "");
      if (!line.input.is_object()) throw_invalid("", "is not a JSON object", "");
      line.request =
          with_prompt(defaults, prompt_ids(line.input, tokenizer), config, choose_max_new_tokens);
      override_options(line.input, line.request);
      runtime::check_request(line.request, config);
      lines.push_back(std::move(line));
    } catch (Error& error) {
      error.add_context(where);
      throw;
    }
  }
  if (lines.empty()) throw_invalid(path, "holds no line", "");
  return lines;
}

runtime::GenerateReport run_data_file(runtime::Engine& engine, const std::vector<DataLine>& lines,
                                      const RunOptions& options,
                                      const runtime::Tokenizer* tokenizer,
                                      const std::vector<int64_t>& eos_ids) {
  AnswerFile file(options, lines);
  const size_t first = file.num_done();
  std::vector<runtime::GenerateRequest> requests;
  for (size_t i = first; i < lines.size(); ++i) requests.push_back(lines[i].request);
  // Requests end in any order; lines wait for their turn.
  std::map<size_t, std::string> waiting;
  size_t next = first;
  const auto put = [&](size_t i, const runtime::GenerateResult& result) {
    const Json out = answer_line(lines[i], result, options, tokenizer, eos_ids);
    waiting[i] = out.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
    for (; !waiting.empty() && waiting.begin()->first == next; ++next) {
      file.append(waiting.begin()->second);
      waiting.erase(waiting.begin());
    }
  };
  for (size_t i = first; i < lines.size(); ++i) {
    if (lines[i].request.max_new_tokens == 0) put(i, {});
  }
  runtime::GenerateCallbacks callbacks;
  callbacks.on_done = [&](size_t i, const runtime::GenerateResult& result) {
    put(first + i, result);
  };
  return engine.generate(requests, callbacks);
}

std::string start_ids_output(const std::vector<runtime::GenerateRequest>& requests,
                             const runtime::GenerateReport& report, int64_t end_id) {
  size_t longest = 0;
  int64_t new_tokens = 0;
  for (const auto& request : requests) {
    longest = std::max(longest, request.prompt_ids.size());
    new_tokens = std::max(new_tokens, request.max_new_tokens);
  }
  const size_t total = longest + static_cast<size_t>(new_tokens);
  std::string text;
  const auto add_row = [&](const std::vector<int32_t>& prompt, const std::vector<int32_t>& ids) {
    for (const int32_t id : prompt) text += std::to_string(id) + " ";
    for (const int32_t id : ids) text += std::to_string(id) + " ";
    for (size_t n = prompt.size() + ids.size(); n < total; ++n)
      text += std::to_string(end_id) + " ";
    text += "\n";
  };
  for (size_t i = 0; i < requests.size(); ++i) {
    add_row(requests[i].prompt_ids, report.results[i].ids);
    for (const auto& other : report.results[i].others) add_row(requests[i].prompt_ids, other.ids);
  }
  return text;
}

void refuse_existing(const RunOptions& options) {
  if (options.output_file.empty() || options.overwrite) return;
  if (!std::filesystem::exists(options.output_file)) return;
  throw_usage(options.output_file, "exists", "give --overwrite to replace it, or another name");
}

void write_whole_file(const std::string& path, const std::string& text) {
  const std::filesystem::path target = path;
  const std::filesystem::path working =
      target.parent_path() /
      ("." + target.filename().string() + "." + std::to_string(::getpid()) + ".tmp");
  try {
    File file = File::create(working);
    file.write_at(std::as_bytes(std::span(text)), 0);
    file.sync();
    std::filesystem::rename(working, target);
  } catch (...) {
    std::error_code ignored;
    std::filesystem::remove(working, ignored);
    throw;
  }
}

}  // namespace llmctl::cli
