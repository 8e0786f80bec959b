// Chat templates against what transformers' Jinja makes of the same conversations.
#include "runtime/chat/chat.h"

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>

#include "formats/core/error.h"
#include "runtime/tokenizer/tokenizer.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_data.h"

namespace llmctl::runtime::chat {
namespace {

using Json = nlohmann::ordered_json;

Dict dict_of(const Json& json) {
  const Value value = Value::from_json(json);
  return *value.dict();
}

/// The text, or "error: ..." where it is refused.
std::string rendered(const std::string& source, const Dict& variables) {
  try {
    return Template(source, "template").render(variables);
  } catch (const Error& error) {
    return std::string("error: ") + error.what();
  }
}

std::string rendered(const std::string& source) { return rendered(source, Dict{}); }

void check(const std::string& source, const Dict& variables, const Json& expected) {
  CAPTURE(source);
  const std::string text = rendered(source, variables);
  if (expected.contains("text")) {
    CHECK(text == expected.at("text").get<std::string>());
  } else {
    CAPTURE(text);
    CHECK(text.starts_with("error: "));
  }
}

}  // namespace

TEST_CASE("chat: templates of the families give the prompts of transformers") {
  std::ifstream file(test::golden("chat/golden.json"));
  REQUIRE(file.good());
  const Json golden = Json::parse(file);
  std::map<std::string, std::string> sources;
  REQUIRE(golden.at("templates").size() > 100);
  for (const Json& expected : golden.at("templates")) {
    const std::string name = expected.at("template");
    if (!sources.contains(name)) {
      std::stringstream text;
      text << std::ifstream(test::golden("chat/templates/" + name)).rdbuf();
      sources[name] = text.str();
    }
    CAPTURE(name);
    CAPTURE(expected.at("variables").dump());
    Dict variables = dict_of(golden.at("specials"));
    variables.set("tools", Value());
    variables.set("documents", Value());
    for (const auto& [key, value] : expected.at("variables").items()) {
      variables.set(key, Value::from_json(value));
    }
    check(sources.at(name), variables, expected);
  }
}

TEST_CASE("chat: each construct gives what jinja2 as transformers sets it up gives") {
  std::ifstream file(test::golden("chat/golden.json"));
  const Json golden = Json::parse(file);
  const Dict variables = dict_of(golden.at("snippet_variables"));
  REQUIRE(golden.at("snippets").size() > 100);
  for (const Json& expected : golden.at("snippets")) {
    check(expected.at("template"), variables, expected);
  }
}

TEST_CASE("chat: what is not supported is refused by name and line") {
  const auto says = [](const char* source, const char* part) {
    const std::string text = rendered(source);
    CAPTURE(source);
    CAPTURE(text);
    CHECK(text.starts_with("error: template: chat template, line "));
    CHECK(text.find(part) != std::string::npos);
  };
  says("\n\n{% include 'x' %}", "line 3: the tag 'include' is not supported");
  says("{% call x() %}{% endcall %}", "the tag 'call'");
  says("{{ x | urlize }}", "the filter 'urlize' is not supported");
  says("{{ 1 is weird }}", "the test 'weird' is not supported");
  says("{{ 'a'.center(3) }}", "the string method 'center' is not supported");
  says("{{ ('a' | safe) + 'b' }}", "the filter 'safe'");
  says("{{ {'items': 1}.items }}", "the method 'items' of a dict without a call");
  says("{{ '%s' % 'a' }}", "'%' behind a text is not supported");
  says("{{ cycler('a') }}", "the function 'cycler' is not supported");
  says("{% for x in y recursive %}{% endfor %}", "a recursive loop is not supported");
  says("{{ 'x'.__class__ }}", "access to '__class__' is not allowed");
  says("{{ f(*x) }}", "'*' before an argument is not supported");
  says("{{ raise_exception('Odd\nroles') }}", "the template refuses this conversation: Odd");
}

TEST_CASE("chat: what is no Jinja is refused with its line") {
  for (const char* source : {"{{",
                             "{{ 1",
                             "{% if 1 %}",
                             "{% endif %}",
                             "{% if %}x{% endif %}",
                             "{{ }}",
                             "{{ 1 + }}",
                             "{{ (1 }}",
                             "{{ 'a }}",
                             "{% for x in %}{% endfor %}",
                             "{% for 1 in x %}{% endfor %}",
                             "{% set x %}",
                             "{% macro %}{% endmacro %}",
                             "{# x",
                             "{% raw %}",
                             "{{ 1 2 }}",
                             "{{ a b }}",
                             "{% break %}",
                             "{{ a..b }}",
                             "{{ a[1 }}",
                             "{{ a | }}",
                             "{{ a is }}",
                             "{{ \x01 }}",
                             "{{ '\\ud800' }}",
                             "{% if 1 %}{% else %}{% else %}{% endif %}",
                             "{{ 1a }}",
                             "{{ a[1,2] }}",
                             "{% 5 %}",
                             "{% if 1 %}{% endfor %}",
                             "{{ 99999999999999999999 }}"}) {
    CAPTURE(source);
    CHECK(rendered(source).starts_with("error: template: chat template, line 1: "));
  }
  CHECK(rendered("\xFF").starts_with("error: template: the chat template is not UTF-8"));
}

TEST_CASE("chat: a hostile template ends soon and in bounded memory") {
  const auto refused = [](const std::string& source) {
    CAPTURE(source.substr(0, 200));
    CHECK(rendered(source).starts_with("error: "));
  };
  refused("{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}");
  refused(
      "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}"
      "{% endfor %}");
  refused(
      "{% set ns = namespace(x=[]) %}{% for i in range(999) %}{% set ns.x = [ns.x] %}{% endfor %}");
  refused("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}");
  refused("{{ 'a' * 99999999999 }}");
  refused("{{ 'abc' * 99999999 }}");
  refused("{{ " + std::string(100000, '(') + "1" + std::string(100000, ')') + " }}");
  refused("{{ " + std::string(100000, '-') + "1 }}");
  refused("{{ 1" + std::string(50000, '+') + " }}");
  std::string nested;
  for (int i = 0; i < 20000; ++i) nested += "{% if 1 %}";
  refused(nested);
  refused(std::string(2 << 20, 'x'));
  // Rings of namespaces are freed, and long chains do not exhaust the stack.
  CHECK(rendered("{% set a = namespace() %}{% set a.a = a %}ok") == "ok");
  CHECK(rendered(
            "{% set n = namespace(x=none) %}{% for i in range(99999) %}{% set m = namespace(x=n.x)"
            " %}{% set n.x = m %}{% endfor %}ok") == "ok");
}

TEST_CASE("chat: every prefix of a template and every damaged one is rendered or refused") {
  std::stringstream text;
  text << std::ifstream(test::golden("chat/templates/mistral-v0.3.jinja")).rdbuf();
  const std::string whole = text.str();
  REQUIRE(whole.size() > 1000);
  const Dict variables = dict_of(Json::parse(
      R"({"messages": [{"role": "user", "content": "hi"}], "bos_token": "<s>", "tools": null})"));
  for (size_t size = 0; size < whole.size(); ++size) rendered(whole.substr(0, size), variables);
  for (size_t i = 0; i < whole.size(); ++i) {
    std::string damaged = whole;
    damaged[i] = static_cast<char>(damaged[i] ^ (1 << (i % 7)));
    rendered(damaged, variables);
  }
  CHECK(rendered(whole, variables) == "<s>[INST] hi[/INST]");
}

TEST_CASE("chat: a model's format is found where transformers finds it") {
  const test::TempDir directory;
  const auto write = [&](const char* name, const std::string& text) {
    std::ofstream(directory / name) << text;
  };
  const auto prompt = [&](const std::optional<std::filesystem::path>& file = std::nullopt) {
    try {
      const auto format = open_chat_format(directory.path(), file);
      if (!format) return std::string("none");
      return format->render(Json::parse(R"([{"role": "user", "content": "hi", "x": null}])"), true);
    } catch (const Error& error) {
      return std::string(error.what());
    }
  };
  CHECK(prompt() == "none");
  write("tokenizer_config.json",
        R"({"tokenizer_class": "LlamaTokenizerFast", "eos_token": {"content": "<end>"},
    "chat_template": "{{ bos_token }}|{{ eos_token }}|{{ messages[0].content }}|{{ messages[0].x is defined }}"})");
  CHECK(prompt() == "<s>|<end>|hi|False");
  write("tokenizer_config.json", R"({"chat_template": [{"name": "tool_use", "template": "t"},
    {"name": "default", "template": "d{{ bos_token }}{{ tools is none }}"}]})");
  CHECK(prompt() == "dTrue");
  write("tokenizer_config.json", R"({"chat_template": [{"name": "rag", "template": "t"}]})");
  CHECK(prompt().find("no chat template is called 'default'; there are: rag") != std::string::npos);
  write("tokenizer_config.json", R"({"chat_template": 5})");
  CHECK(prompt().find("'chat_template' must be a string or a list") != std::string::npos);
  write("chat_template.json", R"({"chat_template": "json"})");
  CHECK(prompt() == "json");
  write("chat_template.jinja", "jinja {{ add_generation_prompt }}\n");
  CHECK(prompt() == "jinja True");
  write("mine.jinja", "mine");
  CHECK(prompt(directory / "mine.jinja") == "mine");
  write("mine.jinja", "\n{{ 1 | nope }}");
  CHECK(prompt(directory / "mine.jinja")
            .find("mine.jinja: chat template, line 2: the filter 'nope'") != std::string::npos);
}

TEST_CASE("chat: messages of another shape are refused with their number") {
  const ChatFormat format(Template("x", "template"), Dict{});
  const auto refusal = [&](const char* json) {
    try {
      return format.render(Json::parse(json), true);
    } catch (const Error& error) {
      return std::string(error.what());
    }
  };
  CHECK(refusal(R"([{"role": "user", "content": "a"}])") == "x");
  // Bytes that are no UTF-8 reach templates as U+FFFD.
  const ChatFormat echo(Template("{{ messages[0].content[1:] }}", "template"), Dict{});
  Json broken = Json::array({{{"role", "user"}, {"content", "a\xFF\xE4"}}});
  CHECK(echo.render(broken, true) == "\xEF\xBF\xBD\xEF\xBF\xBD");
  CHECK(refusal("[]").find("at least one message") != std::string::npos);
  CHECK(refusal("{}").find("at least one message") != std::string::npos);
  CHECK(refusal(R"(["a"])").find("message 1: an object") != std::string::npos);
  CHECK(refusal(R"([{"role": "user", "content": "a"}, {"role": 1, "content": "a"}])")
            .find("message 2: \"role\" must be a string") != std::string::npos);
  CHECK(refusal(R"([{"role": "user"}])").find("\"content\" must be a string") != std::string::npos);
}

TEST_CASE("chat: a SentencePiece model finds the special tokens that a template writes") {
  const test::TempDir directory;
  const auto model = test::golden("tokenizers/spm_bpe/tokenizer.model");
  std::filesystem::create_symlink(std::filesystem::absolute(model), directory / "tokenizer.model");
  const auto tokenizer = open_tokenizer(directory.path());
  REQUIRE(tokenizer != nullptr);
  const int32_t bos = *tokenizer->find_token("<s>"), eos = *tokenizer->find_token("</s>");
  std::vector<int32_t> want = {bos};
  for (const int32_t id : tokenizer->encode("one two", false)) want.push_back(id);
  want.push_back(eos);
  for (const int32_t id : tokenizer->encode("three", false)) want.push_back(id);
  CHECK(tokenizer->encode_chat("<s>one two</s>three") == want);
  CHECK(tokenizer->encode("<s>one", false) != tokenizer->encode_chat("<s>one"));
  std::ofstream(directory / "tokenizer_config.json") << R"({"legacy": false})";
  CHECK_THROWS_WITH_AS(open_tokenizer(directory.path())->encode_chat("a"),
                       doctest::Contains("tokenizer.json"), Error);
}

// Not a test of its own: the door through which tests/interop/chat_test.py renders at random.
}  // namespace llmctl::runtime::chat
