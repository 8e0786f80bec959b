#include "reshard/manifest.h"

#include <xxhash.h>

#include <algorithm>
#include <set>

#include "formats/core/block_digest.h"
#include "formats/core/error.h"
#include "formats/json.h"

namespace llmctl::reshard {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;
using formats::JsonFields;

std::string text_fingerprint(std::string_view text) {
  XXH128_canonical_t bytes;
  XXH128_canonicalFromHash(&bytes, XXH3_128bits(text.data(), text.size()));
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string digits;
  for (const unsigned char byte : bytes.digest) {
    digits += kDigits[byte >> 4];
    digits += kDigits[byte & 15];
  }
  return digits;
}

namespace {

constexpr int kManifestVersion = 1;
/// What stands around the document's own digest; it is the last value.
constexpr std::string_view kDigestKey = "  \"manifest_digest\": \"";
constexpr std::string_view kDocumentEnd = "\"\n}\n";
constexpr size_t kDigestDigits = 32;

bool is_hex(const std::string& text, size_t length) {
  return text.size() == length && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

std::string get_digest(const JsonFields& fields, const char* key, size_t length) {
  std::string value = fields.text(key);
  if (!is_hex(value, length)) {
    fields.refuse("'" + std::string(key) + "' is not " + std::to_string(length) +
                  " hexadecimal digits: '" + printable(value) + "'");
  }
  return value;
}

/// A name that leads to a file below the manifest's directory.
bool is_inside_name(const std::string& name) {
  if (name.empty() || name.front() == '/' || name.find('\0') != std::string::npos) return false;
  for (const fs::path& part : fs::path(name)) {
    if (part == ".." || part == "." || part.empty()) return false;
  }
  return true;
}

DType parse_dtype(const std::string& name, const JsonFields& fields) {
  for (const DTypeInfo& info : dtype_table()) {
    if (info.name == name) return info.dtype;
  }
  fields.refuse("unknown dtype '" + printable(name) + "'");
}

}  // namespace

std::string_view llmctl_version() { return LLMCTL_VERSION; }

std::string source_fingerprint(const formats::Checkpoint& checkpoint) {
  std::string text = "format " + checkpoint.format + "\n";
  for (const formats::CheckpointFile& file : checkpoint.files) {
    // Below the path that the user gave, which itself may change.
    fs::path name = file.path.lexically_relative(checkpoint.path);
    if (name.empty() || *name.begin() == ".." || name == ".") name = file.path.filename();
    text += "file " + std::to_string(file.size_bytes) + " " + name.generic_string() + "\n";
  }
  for (const formats::StoredTensor& tensor : checkpoint.tensors) {
    text += "tensor " + std::to_string(tensor.file) + " " + std::to_string(tensor.offset_bytes) +
            " " + std::string(dtype_name(tensor.dtype)) + " " + std::to_string(tensor.tp_rank) +
            " " + std::to_string(tensor.pp_rank);
    for (const int64_t extent : tensor.shape) text += " " + std::to_string(extent);
    text += " strides";
    for (const int64_t stride : tensor.strides) text += " " + std::to_string(stride);
    text += " " + tensor.name + "\n";
  }
  for (const auto& [name, content] : checkpoint.texts) {
    text += "text " + text_fingerprint(content) + " " + name + "\n";
  }
  return text_fingerprint(text);
}

namespace {

/// A JSON string; throws kInvalidInput for text that is not UTF-8.
std::string quoted(const std::string& text) {
  try {
    return Json(text).dump();
  } catch (const Json::exception&) {
    throw_invalid(printable(text), "is not UTF-8, so that the manifest cannot name it",
                  "rename the file");
  }
}

}  // namespace

std::string write_manifest(const Manifest& manifest) {
  // One line for each file and tensor: there may be thousands of them.
  std::string text =
      "{\n  \"llmctl_manifest\": " + std::to_string(kManifestVersion) +
      ",\n  \"llmctl_version\": " + quoted(manifest.llmctl_version) +
      ",\n  \"format\": " + quoted(manifest.format) +
      ",\n  \"family\": " + quoted(manifest.family) +
      ",\n  \"geometry\": {\"tensor_parallel_size\": " +
      std::to_string(manifest.geometry.tensor_parallel_size) +
      ", \"pipeline_parallel_size\": " + std::to_string(manifest.geometry.pipeline_parallel_size);
  const std::vector<int64_t>& blocks = manifest.geometry.pipeline_blocks;
  for (size_t i = 0; i < blocks.size(); ++i) {
    text += (i == 0 ? ", \"pipeline_blocks\": [" : ", ") + std::to_string(blocks[i]);
  }
  text += std::string(blocks.empty() ? "}" : "]}") +
          ",\n  \"source\": {\"format\": " + quoted(manifest.source_format) +
          ", \"fingerprint\": " + quoted(manifest.source_fingerprint) + "},\n  \"files\": [";
  const char* separator = "\n    ";
  for (const ManifestFile& file : manifest.files) {
    text += separator + ("{\"name\": " + quoted(file.name)) +
            ", \"size\": " + std::to_string(file.size_bytes) +
            ", \"digest\": " + quoted(file.digest) + "}";
    separator = ",\n    ";
  }
  text += "\n  ],\n  \"tensors\": [";
  separator = "\n    ";
  for (const CanonicalDigest& tensor : manifest.tensors) {
    text += separator + ("{\"name\": " + quoted(tensor.key)) + ", \"dtype\": \"" +
            std::string(dtype_name(tensor.dtype)) + "\", \"digest\": \"" +
            digest_hex(tensor.digest) + "\"}";
    separator = ",\n    ";
  }
  text += "\n  ],\n";
  return text + std::string(kDigestKey) + text_fingerprint(text) + std::string(kDocumentEnd);
}

bool is_intact_manifest(std::string_view text) {
  const size_t tail = kDigestKey.size() + kDigestDigits + kDocumentEnd.size();
  if (text.size() < tail || !text.ends_with(kDocumentEnd)) return false;
  const std::string_view body = text.substr(0, text.size() - tail);
  const std::string_view end = text.substr(body.size());
  return end.starts_with(kDigestKey) &&
         end.substr(kDigestKey.size(), kDigestDigits) == text_fingerprint(body);
}

Manifest parse_manifest(std::string_view text, const std::string& where) {
  const Json json = formats::parse_json(text, where);
  const JsonFields root(json, where, "the manifest is damaged or not llmctl's");
  if (root.size("llmctl_manifest") != kManifestVersion) {
    throw_invalid(where,
                  "manifest version " + root.get("llmctl_manifest").dump() + ", " +
                      std::to_string(kManifestVersion) + " expected",
                  "use the llmctl that wrote it");
  }
  Manifest manifest;
  manifest.llmctl_version = root.text("llmctl_version");
  manifest.format = root.text("format");
  manifest.family = root.text("family");
  const JsonFields geometry = root.below(root.get("geometry"));
  manifest.geometry.tensor_parallel_size = geometry.size("tensor_parallel_size");
  manifest.geometry.pipeline_parallel_size = geometry.size("pipeline_parallel_size");
  if (root.get("geometry").contains("pipeline_blocks")) {
    for (const Json& block : geometry.list("pipeline_blocks")) {
      manifest.geometry.pipeline_blocks.push_back(
          formats::get_size(block, where, "pipeline_blocks"));
    }
  }
  const JsonFields source = root.below(root.get("source"));
  manifest.source_format = source.text("format");
  manifest.source_fingerprint = get_digest(source, "fingerprint", kDigestDigits);
  std::set<std::string> names;
  for (const Json& entry : root.list("files")) {
    const JsonFields fields = root.below(entry);
    ManifestFile file{fields.text("name"), static_cast<uint64_t>(fields.size("size")),
                      get_digest(fields, "digest", kDigestDigits)};
    if (!is_inside_name(file.name)) {
      root.refuse("'" + printable(file.name) + "' is not the name of a file inside");
    }
    if (!names.insert(file.name).second) {
      root.refuse("'" + printable(file.name) + "' is named twice");
    }
    manifest.files.push_back(std::move(file));
  }
  for (const Json& entry : root.list("tensors")) {
    const JsonFields fields = root.below(entry);
    CanonicalDigest tensor;
    tensor.key = fields.text("name");
    tensor.dtype = parse_dtype(fields.text("dtype"), fields);
    for (const char digit : get_digest(fields, "digest", 16)) {
      tensor.digest =
          tensor.digest << 4 | static_cast<uint64_t>(digit <= '9' ? digit - '0' : digit - 'a' + 10);
    }
    manifest.tensors.push_back(std::move(tensor));
  }
  return manifest;
}

}  // namespace llmctl::reshard
