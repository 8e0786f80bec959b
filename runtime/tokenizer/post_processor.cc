#include "runtime/tokenizer/post_processor.h"

#include <limits>
#include <string>

#include "formats/json.h"

namespace llmctl::runtime::tokenizer {

namespace {

int32_t read_id(const Json& value, const Component& owner) {
  const int64_t id = formats::get_size(value, owner.where(), "id");
  if (id > std::numeric_limits<int32_t>::max()) owner.refuse("id beyond 2^31 - 1");
  return static_cast<int32_t>(id);
}

void append_special(const Component& item, const Component& specials, std::vector<int32_t>& out) {
  const Component special = specials.child(item.text("id"));
  if (!special.has("ids") || !special.json().at("ids").is_array()) {
    special.refuse("'ids' must be a list");
  }
  for (const Json& id : special.json().at("ids")) out.push_back(read_id(id, special));
}

Frame read_template(const Component& component) {
  Frame frame;
  bool seen_text = false;
  for (const Component& item : component.children("single")) {
    if (item.has("SpecialToken")) {
      append_special(item.child("SpecialToken"), component.child("special_tokens"),
                     seen_text ? frame.suffix : frame.prefix);
    } else if (item.has("Sequence") && item.child("Sequence").text("id") == "A" && !seen_text) {
      seen_text = true;
    } else {
      item.refuse("a template item other than a special token and one sequence A");
    }
  }
  if (!seen_text) component.refuse("the template 'single' has no sequence A");
  return frame;
}

/// The id in a ["</s>", 2] pair.
int32_t read_pair(const Component& component, const std::string& key) {
  if (!component.has(key)) component.refuse("'" + key + "' is missing");
  const Json& pair = component.json().at(key);
  if (!pair.is_array() || pair.size() != 2) {
    component.refuse("'" + key + "' must be [token, id]");
  }
  return read_id(pair.at(1), component);
}

}  // namespace

Frame read_post_processor(const Component& component) {
  const std::string type = component.type();
  if (type == "TemplateProcessing") return read_template(component);
  if (type == "ByteLevel") return {};
  if (type == "BertProcessing" || type == "RobertaProcessing") {
    return {{read_pair(component, "cls")}, {read_pair(component, "sep")}};
  }
  if (type == "Sequence") {
    Frame frame;
    for (const Component& child : component.children("processors")) {
      // A later processor frames what an earlier one made.
      const Frame outer = read_post_processor(child);
      frame.prefix.insert(frame.prefix.begin(), outer.prefix.begin(), outer.prefix.end());
      frame.suffix.insert(frame.suffix.end(), outer.suffix.begin(), outer.suffix.end());
    }
    return frame;
  }
  component.refuse_type("post-processor");
}

}  // namespace llmctl::runtime::tokenizer
