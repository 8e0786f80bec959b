#include "formats/zstd_file.h"

#include <zstd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <memory>

#include "formats/core/cancel.h"
#include "formats/core/error.h"

namespace llmctl::formats {
namespace {

namespace fs = std::filesystem;

constexpr uint32_t kSkippableMagic = 0x184D2A5E, kSeekableMagic = 0x8F92EAB1;
constexpr size_t kSkippableHeaderBytes = 8, kFooterBytes = 9;
constexpr uint64_t kMostFrameBytes = uint64_t{16} << 20;
constexpr int kLevel = 3;

void append_u32_le(std::vector<std::byte>& out, uint64_t value) {
  for (int i = 0; i < 4; ++i) out.push_back(static_cast<std::byte>(value >> (8 * i) & 0xFF));
}

uint32_t read_u32_le(const std::byte* bytes) {
  uint32_t value = 0;
  for (size_t i = 4; i-- > 0;) value = value << 8 | std::to_integer<uint32_t>(bytes[i]);
  return value;
}

using Compressor = std::unique_ptr<ZSTD_CCtx, decltype(&ZSTD_freeCCtx)>;
using Decompressor = std::unique_ptr<ZSTD_DCtx, decltype(&ZSTD_freeDCtx)>;

std::vector<std::byte> compress_frame(std::span<const std::byte> bytes) {
  static thread_local const Compressor context(ZSTD_createCCtx(), ZSTD_freeCCtx);
  if (!context) throw Error(ErrorCode::kEnvironment, "no memory to compress with");
  ZSTD_CCtx_setParameter(context.get(), ZSTD_c_compressionLevel, kLevel);
  ZSTD_CCtx_setParameter(context.get(), ZSTD_c_checksumFlag, 1);
  std::vector<std::byte> out(ZSTD_compressBound(bytes.size()));
  const size_t size =
      ZSTD_compress2(context.get(), out.data(), out.size(), bytes.data(), bytes.size());
  if (ZSTD_isError(size) != 0) {
    throw Error(ErrorCode::kEnvironment,
                std::string("cannot compress: ") + ZSTD_getErrorName(size));
  }
  out.resize(size);
  return out;
}

/// Where frames begin, and the end.
std::vector<uint64_t> frame_offsets(uint64_t size, const std::vector<uint64_t>& cuts) {
  std::vector<uint64_t> offsets;
  const auto add_up_to = [&](uint64_t end) {
    uint64_t at = offsets.empty() ? 0 : offsets.back();
    if (offsets.empty()) offsets.push_back(0);
    for (; end - at > kZstdFrameBytes; offsets.push_back(at)) at += kZstdFrameBytes;
    if (end > at) offsets.push_back(end);
  };
  for (const uint64_t cut : cuts) {
    if (cut > 0 && cut < size) add_up_to(cut);
  }
  add_up_to(size);
  return offsets;
}

}  // namespace

void compress_zstd(const fs::path& source, const fs::path& target,
                   const std::vector<uint64_t>& cuts, ThreadPool& pool) {
  const File in = File::open_read(source);
  File out = File::create(target);
  const std::vector<uint64_t> offsets = frame_offsets(in.size_bytes(), cuts);
  const size_t count = offsets.size() - 1;
  if (count > UINT32_MAX / 8 - 2) {
    throw Error(ErrorCode::kEnvironment, "too large for one compressed file", source.string());
  }
  std::vector<std::byte> table;
  append_u32_le(table, kSkippableMagic);
  append_u32_le(table, count * 8 + kFooterBytes);
  uint64_t at = 0;
  const size_t wave = static_cast<size_t>(pool.num_threads()) * 4;
  std::vector<std::vector<std::byte>> frames;
  for (size_t first = 0; first < count; first += wave) {
    frames.assign(std::min(wave, count - first), {});
    pool.parallel_for(static_cast<int64_t>(frames.size()), [&](int64_t i) {
      throw_if_cancelled();
      static thread_local std::vector<std::byte> plain;
      const size_t frame = first + static_cast<size_t>(i);
      plain.resize(offsets[frame + 1] - offsets[frame]);
      in.read_at(plain, offsets[frame]);
      frames[static_cast<size_t>(i)] = compress_frame(plain);
    });
    for (size_t i = 0; i < frames.size(); ++i) {
      out.write_at(frames[i], at);
      at += frames[i].size();
      append_u32_le(table, frames[i].size());
      append_u32_le(table, offsets[first + i + 1] - offsets[first + i]);
    }
  }
  append_u32_le(table, count);
  table.push_back(std::byte{0});
  append_u32_le(table, kSeekableMagic);
  out.write_at(table, at);
  out.sync();
}

ZstdFile::ZstdFile(const fs::path& path) : file_(File::open_read(path)) {
  static std::atomic<uint64_t> next_id{1};
  id_ = next_id++;
  const std::string where = path.string();
  const auto refuse = [&](const std::string& what) {
    throw_invalid(where, what, "the file is damaged or cut short; fetch it again");
  };
  const uint64_t size = file_.size_bytes();
  if (size < kSkippableHeaderBytes + kFooterBytes) refuse("too short for a compressed file");
  std::array<std::byte, kFooterBytes> footer{};
  file_.read_at(footer, size - kFooterBytes);
  if (read_u32_le(footer.data() + 5) != kSeekableMagic) refuse("no index at its end");
  const uint64_t count = read_u32_le(footer.data());
  const auto descriptor = std::to_integer<unsigned>(footer[4]);
  if ((descriptor & 0x7C) != 0) refuse("an index of an unknown kind");
  const uint64_t entry_bytes = (descriptor & 0x80) != 0 ? 12 : 8;
  const uint64_t table_bytes = kSkippableHeaderBytes + count * entry_bytes + kFooterBytes;
  if (table_bytes > size) refuse("an index of " + std::to_string(count) + " frames");
  std::vector<std::byte> table(static_cast<size_t>(table_bytes));
  file_.read_at(table, size - table_bytes);
  if (read_u32_le(table.data()) != kSkippableMagic ||
      read_u32_le(table.data() + 4) != table_bytes - kSkippableHeaderBytes) {
    refuse("a damaged index");
  }
  const uint64_t data_bytes = size - table_bytes;
  Frame frame;
  frames_.reserve(static_cast<size_t>(count) + 1);
  for (uint64_t i = 0; i < count; ++i) {
    frames_.push_back(frame);
    const std::byte* entry = table.data() + kSkippableHeaderBytes + i * entry_bytes;
    const uint64_t packed = read_u32_le(entry), plain = read_u32_le(entry + 4);
    if (plain > kMostFrameBytes) refuse("a frame of " + std::to_string(plain) + " bytes");
    if (packed > data_bytes - frame.at) refuse("its frames are longer than the file");
    frame.at += packed;
    frame.offset += plain;
  }
  if (frame.at != data_bytes) refuse("its frames are shorter than the file");
  frames_.push_back(frame);
}

void ZstdFile::decompress(size_t frame, std::span<std::byte> out) const {
  static thread_local const Decompressor context(ZSTD_createDCtx(), ZSTD_freeDCtx);
  static thread_local std::vector<std::byte> packed;
  if (!context) throw Error(ErrorCode::kEnvironment, "no memory to decompress with");
  packed.resize(static_cast<size_t>(frames_[frame + 1].at - frames_[frame].at));
  file_.read_at(packed, frames_[frame].at);
  const size_t size =
      ZSTD_decompressDCtx(context.get(), out.data(), out.size(), packed.data(), packed.size());
  if (ZSTD_isError(size) != 0 || size != out.size()) {
    throw_invalid(file_.path().string(),
                  "frame " + std::to_string(frame) + " cannot be decompressed: " +
                      (ZSTD_isError(size) != 0
                           ? ZSTD_getErrorName(size)
                           : std::to_string(size) + " bytes of " + std::to_string(out.size())),
                  "the file is damaged; fetch it again");
  }
}

void ZstdFile::read_at(std::span<std::byte> out, uint64_t offset) const {
  // Ranges that follow each other often share a frame.
  struct Last {
    uint64_t id = 0;
    size_t frame = 0;
    std::vector<std::byte> bytes;
  };
  static thread_local Last last;
  const uint64_t end = offset + out.size();
  auto next = std::upper_bound(frames_.begin(), frames_.end(), offset,
                               [](uint64_t at, const Frame& frame) { return at < frame.offset; });
  for (auto frame = static_cast<size_t>(next - frames_.begin()) - 1; offset < end; ++frame) {
    const uint64_t lo = frames_[frame].offset, hi = frames_[frame + 1].offset;
    if (offset == lo && hi <= end) {
      decompress(frame, out.first(static_cast<size_t>(hi - lo)));
    } else {
      if (last.id != id_ || last.frame != frame) {
        last.id = 0;
        last.bytes.resize(static_cast<size_t>(hi - lo));
        decompress(frame, last.bytes);
        last.id = id_;
        last.frame = frame;
      }
      std::memcpy(out.data(), last.bytes.data() + (offset - lo), std::min(hi, end) - offset);
    }
    const uint64_t done = std::min(hi, end) - offset;
    out = out.subspan(static_cast<size_t>(done));
    offset += done;
  }
}

}  // namespace llmctl::formats
