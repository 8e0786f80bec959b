#include "formats/stranger.h"

#include <algorithm>
#include <string_view>
#include <system_error>
#include <vector>

#include "formats/core/file.h"
#include "formats/directory.h"

namespace llmctl::formats {
namespace {

namespace fs = std::filesystem;

struct Magic {
  size_t offset;
  std::string_view bytes;
  std::string_view what;
  std::string_view hint;
};

constexpr std::string_view kNotRead = "give the model's Hugging Face files instead";

constexpr Magic kMagics[] = {
    {0, "version https://git-lfs", "a Git LFS pointer, not the file itself",
     "run 'git lfs pull' or download the file"},
    {0, "GGUF", "a GGUF file", kNotRead},
    {0, "ggml", "a GGML file", kNotRead},
    {0, "lmgg", "a GGML file", kNotRead},
    {0, "tjgg", "a GGML file", kNotRead},
    {0, "\x1F\x8B", "a gzip archive", "unpack it and give what is inside"},
    {0, "\x28\xB5\x2F\xFD", "a zstd archive", "unpack it and give what is inside"},
    {257, {"ustar\0", 6}, "a tar archive", "unpack it and give what is inside"},
    {257, "ustar ", "a tar archive", "unpack it and give what is inside"},
    {0, "\x89HDF", "an HDF5 file (Keras, TensorFlow)", kNotRead},
    {0, "\x93NUMPY", "a numpy array", kNotRead},
    {0, "<!DOCTYPE", "an HTML page", "the download gave a web page; fetch the file again"},
    {0, "<html", "an HTML page", "the download gave a web page; fetch the file again"},
};

bool ends_with(const std::string& name, std::string_view end) {
  return name.size() >= end.size() && name.compare(name.size() - end.size(), end.size(), end) == 0;
}

}  // namespace

std::optional<Stranger> describe_stranger_file(const fs::path& path) {
  try {
    const File file = File::open_read(path);
    std::string head(static_cast<size_t>(std::min<uint64_t>(file.size_bytes(), 512)), '\0');
    file.read_at(std::as_writable_bytes(std::span(head)), 0);
    if (head.empty()) return Stranger{"an empty file", "fetch it again"};
    for (const Magic& magic : kMagics) {
      if (head.size() >= magic.offset &&
          std::string_view(head).substr(magic.offset, magic.bytes.size()) == magic.bytes) {
        return Stranger{std::string(magic.what), std::string(magic.hint)};
      }
    }
  } catch (const std::exception&) {
    // Whoever opens the file next reports why it cannot be read.
  }
  return std::nullopt;
}

std::optional<Stranger> describe_stranger_directory(const fs::path& path) {
  try {
    const std::vector<std::string> names = list_directory(path);
    const auto has = [&](std::string_view name) {
      return std::find(names.begin(), names.end(), name) != names.end();
    };
    const auto has_start = [&](std::string_view start) {
      return std::any_of(names.begin(), names.end(), [&](const std::string& name) {
        return name.compare(0, start.size(), start) == 0;
      });
    };
    const auto has_end = [&](std::string_view end) {
      return std::any_of(names.begin(), names.end(),
                         [&](const std::string& name) { return ends_with(name, end); });
    };
    if (names.empty())
      return Stranger{"an empty directory", "give the directory with the model's files"};
    if (has_start("tp_rank_")) {
      return Stranger{"a checkpoint of a Megatron fork that llmctl does not read", ""};
    }
    if (has("adapter_config.json")) {
      return Stranger{"a LoRA adapter, not a whole model", "merge it into its base model first"};
    }
    if (has(".metadata") && has_end(".distcp")) {
      return Stranger{"a torch distributed checkpoint, which is not supported",
                      "convert it with torch.distributed.checkpoint.format_utils first"};
    }
    if (has("params.json") && has_start("consolidated.")) {
      return Stranger{"a model in Meta's own layout, which is not supported",
                      std::string(kNotRead)};
    }
    if (has("snapshots") && has("blobs")) {
      return Stranger{"a Hugging Face cache entry", "give the directory inside its snapshots/"};
    }
    if (has_end(".gguf")) return Stranger{"a directory of GGUF files", std::string(kNotRead)};
    if (has_start("unfusedQKV-")) {
      return Stranger{"a FasterTransformer checkpoint with unfused QKV, which is not supported",
                      "convert it again with fused QKV"};
    }
    if (has("tf_model.h5") || has("flax_model.msgpack")) {
      return Stranger{"a TensorFlow or Flax model", "fetch the model's safetensors or torch files"};
    }
    if (has("config.json")) {
      return Stranger{
          "a directory with config.json but no weights",
          "fetch model.safetensors or pytorch_model.bin, with the index if there is one"};
    }
  } catch (const std::exception&) {
    // An unreadable directory is reported by whoever reads it next.
  }
  return std::nullopt;
}

}  // namespace llmctl::formats
