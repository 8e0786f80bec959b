// llmctl's side of tests/interop/tokenizers_test.py and chat_test.py: many texts in one process.
//
//   llmctl_text_tool tokens DIRECTORY < [text or [ids...], ...] > [{"ids": [...], "text": ...},
//   ...] llmctl_text_tool chat < [{"template": ..., "variables": {...}}, ...] > [text, ...]
//
// A text is encoded and decoded, a list of ids is decoded; that a stream gives the same text in
// whole characters is checked here. A template that is refused gives "error: ...".
#include <cstdio>
#include <exception>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "formats/core/error.h"
#include "runtime/chat/template.h"
#include "runtime/chat/value.h"
#include "runtime/tokenizer/tokenizer.h"
#include "runtime/tokenizer/unicode.h"

namespace {

using namespace llmctl;
using Json = nlohmann::ordered_json;

std::string decode_as_stream(const runtime::Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  runtime::StreamDecoder stream(tokenizer);
  std::string joined;
  for (const int32_t id : ids) {
    const std::string part = stream.push(id);
    if (!runtime::tokenizer::is_valid_utf8(part)) {
      throw std::runtime_error("a stream printed half a character");
    }
    joined += part;
  }
  return joined + stream.finish();
}

Json tokens(const std::string& directory, const Json& items) {
  const std::unique_ptr<runtime::Tokenizer> tokenizer = runtime::open_tokenizer(directory);
  if (tokenizer == nullptr) throw std::runtime_error("no tokenizer in " + directory);
  Json out = Json::array();
  for (const Json& item : items) {
    const auto ids = item.is_string() ? tokenizer->encode(item.get<std::string>(), true)
                                      : item.get<std::vector<int32_t>>();
    const std::string text = tokenizer->decode(ids, true);
    if (decode_as_stream(*tokenizer, ids) != text) {
      throw std::runtime_error("a stream printed another text than " + Json(text).dump());
    }
    out.push_back({{"ids", ids}, {"text", text}});
  }
  return out;
}

Json chat(const Json& items) {
  Json out = Json::array();
  for (const Json& item : items) {
    try {
      const auto variables = runtime::chat::Value::from_json(item.at("variables"));
      const runtime::chat::Template parsed(item.at("template").get<std::string>(), "template");
      out.push_back(parsed.render(*variables.dict()));
    } catch (const Error& error) {
      out.push_back(std::string("error: ") + error.what());
    }
  }
  return out;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string verb = argc > 1 ? argv[1] : "";
  try {
    if (verb == "tokens" && argc == 3) {
      std::cout << tokens(argv[2], Json::parse(std::cin));
    } else if (verb == "chat" && argc == 2) {
      std::cout << chat(Json::parse(std::cin));
    } else {
      std::fprintf(stderr, "usage: llmctl_text_tool tokens DIRECTORY | chat\n");
      return 2;
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "llmctl_text_tool: %s\n", error.what());
    return 1;
  }
  return 0;
}
