// llmctl-manifest.json: what an output directory holds, so that damage to any of it can be found.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "formats/checkpoint.h"
#include "reshard/canonical_digest.h"

namespace llmctl::reshard {

inline constexpr std::string_view kManifestName = "llmctl-manifest.json";

/// XXH3-128 of `text`, as 32 hexadecimal digits.
std::string text_fingerprint(std::string_view text);

struct ManifestFile {
  std::string name;  ///< relative to the manifest's directory, '/' between folders
  uint64_t size_bytes = 0;
  std::string digest;  ///< BlockDigest::hex of the bytes

  friend bool operator==(const ManifestFile&, const ManifestFile&) = default;
};

/// How an output is cut.
struct Geometry {
  int64_t tensor_parallel_size = 1, pipeline_parallel_size = 1;
  /// Layers of each stage; empty: even, or the format knows no stages.
  std::vector<int64_t> pipeline_blocks;
};

/// docs/manifest.md. A plain value.
struct Manifest {
  std::string llmctl_version;
  std::string format, family;
  Geometry geometry;
  std::string source_format, source_fingerprint;
  std::vector<ManifestFile> files;       ///< by name
  std::vector<CanonicalDigest> tensors;  ///< in canonical order
};

/// The version of this program, as manifests name it.
std::string_view llmctl_version();

/// 32 hexadecimal digits over the names, sizes, headers and metadata of a checkpoint's files, not
/// their weights. The path plays no part.
std::string source_fingerprint(const formats::Checkpoint& checkpoint);

/// The document; ends with its own digest. The same manifest gives the same text. Throws
/// kInvalidInput for a file name that is not UTF-8.
std::string write_manifest(const Manifest& manifest);

/// Throws kInvalidInput, naming `where`, for text that is no manifest. Does not look at the
/// document's own digest: see `is_intact`.
Manifest parse_manifest(std::string_view text, const std::string& where);
/// Whether the digest at the end of the document is that of the text before it.
bool is_intact_manifest(std::string_view text);

/// A fault of one file.
struct CheckFault {
  enum class Kind { kMissing, kUnreadable, kSize, kDigest, kManifest };
  Kind kind = Kind::kMissing;
  std::string file;
  std::string expected, found;
};

struct CheckResult {
  std::filesystem::path directory;  ///< the one that holds the manifest
  uint64_t num_files = 0, size_bytes = 0;
  std::vector<CheckFault> faults;  ///< in order of name
  std::vector<std::string> extra;  ///< files that the manifest does not know
};

struct CheckOptions {
  int jobs = 1;
  /// Called once the manifest is read, with the bytes that will be.
  std::function<void(uint64_t bytes)> total;
  /// Called with the bytes read since the last call, from any worker.
  std::function<void(uint64_t bytes)> progress;
};

/// Reads every file that the manifest in `directory` names, or in the only folder inside that has
/// one, past the page cache where that is possible. Throws kInvalidInput when there is no manifest
/// or it is none; a manifest whose own digest is wrong is a fault and ends the check. Memory: 1 MiB
/// per job.
CheckResult check_directory(const std::filesystem::path& directory, const CheckOptions& options);

}  // namespace llmctl::reshard
