#include "formats/torch_file.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <utility>

#include "formats/core/checked.h"
#include "formats/core/error.h"
#include "formats/stranger.h"
#include "formats/zip.h"

namespace llmctl::formats {
namespace {

namespace fs = std::filesystem;
using namespace std::string_view_literals;

constexpr std::string_view kZipMagic = "PK\x03\x04"sv;
// A pickle of 0x1950a86a20f9469cfc6c.
constexpr std::string_view kLegacyMagic =
    "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e"sv;
constexpr int64_t kLegacyProtocol = 1001;
constexpr const char* kDamagedHint = "the file is damaged or cut short; download it again";

std::string_view as_text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// What follows "<root>/" in the name of an entry; nothing without a slash.
std::optional<std::string_view> below_root(std::string_view name) {
  const size_t slash = name.find('/');
  if (slash == std::string_view::npos) return std::nullopt;
  return name.substr(slash + 1);
}

bool is_torch_entry(std::string_view entry) {
  return entry == "data.pkl" || entry == "version" || entry == "byteorder" ||
         entry == "constants.pkl" || entry.starts_with("data/") || entry.starts_with("code/") ||
         entry.starts_with(".data/") || entry == ".format_version" || entry == ".storage_alignment";
}

/// Says what a file that is no torch file looks like. `head` is its first bytes.
[[noreturn]] void refuse_stranger(const fs::path& path, std::string_view head) {
  const std::string where = path.string();
  if (head.size() >= 262 && head.substr(257, 5) == "ustar") {
    throw_invalid(where, "a tar archive, as torch.save wrote before version 0.2",
                  "load it with PyTorch and save it again");
  }
  if (head.size() > 8 && head[8] == '{' && std::string_view(head).substr(4, 4) == "\0\0\0\0"sv) {
    throw_invalid(where, "a safetensors file under a name for torch files",
                  "rename it to end in .safetensors");
  }
  if (head.starts_with("\x80")) {
    throw_invalid(where, "a bare pickle, not a file that torch.save wrote",
                  "load it with Python and save it again with torch.save");
  }
  if (const auto stranger = describe_stranger_file(path)) {
    throw_invalid(where, stranger->what + ", not a torch file", stranger->hint);
  }
  throw_invalid(where, "not a torch file: neither a zip archive nor the older stream",
                kDamagedHint);
}

uint64_t to_unsigned(int64_t value) { return static_cast<uint64_t>(value); }

}  // namespace

bool is_torch_file(const fs::path& path) {
  try {
    const File file = File::open_read(path);
    std::array<char, 30 + 512> buffer;
    const size_t size = static_cast<size_t>(std::min<uint64_t>(buffer.size(), file.size_bytes()));
    file.read_at(std::as_writable_bytes(std::span(buffer).first(size)), 0);
    const std::string_view head(buffer.data(), size);
    if (head.starts_with(kLegacyMagic)) return true;
    if (!head.starts_with(kZipMagic) || head.size() < 30) return false;
    const size_t name_length =
        static_cast<unsigned char>(head[26]) | size_t{static_cast<unsigned char>(head[27])} << 8;
    const auto entry = below_root(head.substr(30, name_length));
    return entry && is_torch_entry(*entry);
  } catch (const std::exception&) {
    return false;
  }
}

void read_torch_file(const fs::path& path, int file, std::vector<StoredTensor>& out,
                     std::vector<std::string>& notes) {
  TorchFile::open(path).list_tensors(file, out, notes);
}

void TorchFile::fail(const std::string& what, const std::string& hint) const {
  throw_invalid(path_.string(), what, hint);
}

TorchFile TorchFile::open(const fs::path& path, const PickleLimits& limits) {
  TorchFile file;
  file.path_ = path;
  file.mapping_ = std::make_unique<MappedFile>(path);
  const std::string_view text = as_text(file.mapping_->bytes());
  if (text.starts_with(kZipMagic)) {
    file.open_zip(limits);
  } else if (text.starts_with(kLegacyMagic)) {
    file.open_legacy(limits);
  } else {
    refuse_stranger(path, text.substr(0, 512));
  }
  return file;
}

void TorchFile::open_zip(const PickleLimits& limits) {
  const std::string where = path_.string();
  const File file = File::open_read(path_);
  const ZipArchive archive = ZipArchive::open(file, where);
  if (archive.size() == 0) fail("an empty zip archive, not a torch file");
  const std::string first(archive.entry(0).name);
  if (!below_root(first)) {
    fail("a zip archive, but not one of torch.save: its first entry is '" + printable(first) + "'");
  }
  const std::string root = first.substr(0, first.find('/') + 1);
  for (size_t i = 0; i < archive.size(); ++i) {
    const std::string_view name = archive.entry(i).name;
    if (!name.starts_with(root)) {
      fail("entry '" + printable(std::string(name)) + "' does not lie under '" + printable(root) +
               "' like the others",
           kDamagedHint);
    }
    const std::string_view entry = name.substr(root.size());
    if (entry == "constants.pkl" || entry.starts_with("code/")) {
      fail("a TorchScript archive: it holds a program, not only weights",
           "load it with torch.jit.load and save its state_dict() with torch.save");
    }
  }
  for (size_t i = 0; i < archive.size(); ++i) {
    if (archive.entry(i).method == 0) continue;
    fail("entry '" + printable(std::string(archive.entry(i).name)) + "' is compressed (method " +
             std::to_string(archive.entry(i).method) + "); torch.save stores entries as they are",
         "load the file with PyTorch and save it again with torch.save");
  }
  const auto bytes_of = [&](const ZipEntry& entry) {
    return mapping_->bytes().subspan(static_cast<size_t>(entry.offset_bytes),
                                     static_cast<size_t>(entry.size_bytes));
  };
  const auto small_text = [&](const char* name) -> std::optional<std::string> {
    const auto entry = archive.find(root + name);
    if (!entry) return std::nullopt;
    if (entry->size_bytes > 64) fail(std::string("entry '") + name + "' is too long", kDamagedHint);
    std::string text(as_text(bytes_of(*entry)));
    while (!text.empty() && (text.back() == '\n' || text.back() == '\r')) text.pop_back();
    return text;
  };

  auto version = small_text("version");
  if (!version) version = small_text(".data/version");
  if (version) {
    const bool is_known =
        *version == "10" || (version->size() == 1 && (*version)[0] >= '1' && (*version)[0] <= '9');
    if (!is_known) {
      fail("torch archive version '" + printable(*version) + "'; 1 to 10 are supported",
           "save it again with an older PyTorch");
    }
  }
  if (const auto order = small_text("byteorder"); order && *order != "little") {
    if (*order == "big") {
      fail("it was saved on a big-endian machine, which llmctl does not read",
           "load it with PyTorch on a little-endian machine and save it again");
    }
    fail("entry 'byteorder' says '" + printable(*order) + "'; 'little' or 'big' expected");
  }

  const auto entry = archive.find(root + "data.pkl");
  if (!entry) fail("a zip archive, but not one of torch.save: it has no 'data.pkl'");
  pickle_ = std::make_unique<Pickle>(Pickle::parse(bytes_of(*entry), where + ": data.pkl", limits));
  if (pickle_->consumed_bytes() != entry->size_bytes) {
    fail("data.pkl: " + std::to_string(entry->size_bytes - pickle_->consumed_bytes()) +
             " bytes behind the end of the pickle",
         kDamagedHint);
  }

  const std::string data = root + "data/";
  for (size_t i = 0; i < archive.size(); ++i) {
    const ZipEntry payload = archive.entry(i);
    if (!payload.name.starts_with(data)) continue;
    payloads_.push_back(
        {std::string(payload.name.substr(data.size())), payload.offset_bytes, payload.size_bytes});
  }
  sort_payloads();
}

void TorchFile::open_legacy(const PickleLimits& limits) {
  const std::span<const std::byte> bytes = mapping_->bytes();
  uint64_t position = kLegacyMagic.size();
  const auto parse = [&](const char* what) {
    Pickle pickle = Pickle::parse(bytes.subspan(static_cast<size_t>(position)),
                                  path_.string() + ": " + what, limits);
    position += pickle.consumed_bytes();
    return pickle;
  };
  {
    const Pickle protocol = parse("protocol");
    if (protocol.root().find_int() != kLegacyProtocol) {
      fail("the protocol of the stream is not " + std::to_string(kLegacyProtocol), kDamagedHint);
    }
    const Pickle system = parse("system record");
    const auto little_endian = system.root().find("little_endian");
    if (!little_endian || !little_endian->find_bool()) {
      fail("the stream does not say its byte order", kDamagedHint);
    }
    if (!*little_endian->find_bool()) {
      fail("it was saved on a big-endian machine, which llmctl does not read",
           "load it with PyTorch on a little-endian machine and save it again");
    }
  }
  pickle_ = std::make_unique<Pickle>(parse("main pickle"));

  // The stream gives element counts only; the sizes of the elements are in the main pickle.
  std::vector<PickleNode> storages = pickle_->storages();
  std::stable_sort(storages.begin(), storages.end(),
                   [](const auto& a, const auto& b) { return a.storage_key() < b.storage_key(); });
  for (size_t i = 1; i < storages.size(); ++i) {
    const PickleNode &a = storages[i - 1], &b = storages[i];
    if (a.storage_key() == b.storage_key() &&
        (a.scalar_type().bytes != b.scalar_type().bytes ||
         a.storage_num_elements() != b.storage_num_elements())) {
      fail("storage '" + printable(std::string(a.storage_key())) + "' is described in two ways",
           kDamagedHint);
    }
  }
  const File file = File::open_read(path_);
  const Pickle keys = parse("storage keys");
  if (keys.root().kind() != PickleKind::kList) {
    fail("the list of storage keys is a " + keys.root().describe(), kDamagedHint);
  }
  payloads_.reserve(std::min(keys.root().size(), storages.size()));
  for (size_t i = 0; i < keys.root().size(); ++i) {
    const auto key = keys.root().item(i).find_text();
    if (!key) fail("a storage key is a " + keys.root().item(i).describe(), kDamagedHint);
    const std::string name = "storage '" + printable(std::string(*key)) + "'";
    const auto storage = std::lower_bound(
        storages.begin(), storages.end(), *key,
        [](const PickleNode& node, std::string_view text) { return node.storage_key() < text; });
    if (storage == storages.end() || storage->storage_key() != *key) {
      fail(name + " is listed, but no tensor uses it", kDamagedHint);
    }
    if (!is_inside(position, 8, bytes.size())) {
      fail("the file ends before " + name, kDamagedHint);
    }
    std::array<uint8_t, 8> header;
    file.read_at(std::as_writable_bytes(std::span(header)), position);
    uint64_t count = 0;
    for (size_t b = 0; b < 8; ++b) count |= uint64_t{header[b]} << (8 * b);
    position += 8;
    if (count != to_unsigned(storage->storage_num_elements())) {
      fail(name + ": " + std::to_string(storage->storage_num_elements()) +
               " elements by the pickle, " + std::to_string(count) + " by the stream",
           kDamagedHint);
    }
    // Cannot overflow: the pickle machine checked count * size of every storage.
    const uint64_t size = count * static_cast<uint64_t>(storage->scalar_type().bytes);
    if (!is_inside(position, size, bytes.size())) {
      fail(name + ": " + std::to_string(size) + " bytes expected, " +
               std::to_string(bytes.size() - position) + " left in the file",
           kDamagedHint);
    }
    payloads_.push_back({std::string(*key), position, size});
    position += size;
  }
  if (position != bytes.size()) {
    fail(std::to_string(bytes.size() - position) + " bytes behind the last storage", kDamagedHint);
  }
  sort_payloads();
  for (size_t i = 1; i < payloads_.size(); ++i) {
    if (payloads_[i - 1].key == payloads_[i].key) {
      fail("storage '" + printable(payloads_[i].key) + "' is listed twice", kDamagedHint);
    }
  }
}

void TorchFile::sort_payloads() {
  std::sort(payloads_.begin(), payloads_.end(),
            [](const Payload& a, const Payload& b) { return a.key < b.key; });
}

const TorchFile::Payload* TorchFile::find_payload(std::string_view key) const {
  const auto it = std::lower_bound(
      payloads_.begin(), payloads_.end(), key,
      [](const Payload& payload, std::string_view text) { return payload.key < text; });
  return it != payloads_.end() && it->key == key ? &*it : nullptr;
}

StoredTensor TorchFile::resolve(const PickleNode& tensor, std::string name, int file) const {
  const std::string label = "tensor '" + printable(name) + "'";
  if (tensor.kind() != PickleKind::kTensor) fail(label + " is a " + tensor.describe());
  const TorchScalarType& type = tensor.scalar_type();
  if (!type.dtype) {
    fail(label + " has elements of type " + std::string(type.name) + ", which llmctl cannot read");
  }
  if (tensor.storage_location() == "meta") {
    fail(label + " has no data: it was saved from the meta device");
  }
  const PickleNode storage = tensor.tensor_storage();
  const uint64_t unit = static_cast<uint64_t>(storage.scalar_type().bytes);
  const uint64_t storage_bytes = to_unsigned(storage.storage_num_elements()) * unit;
  const std::string storage_label =
      "storage '" + printable(std::string(storage.storage_key())) + "'";
  const Payload* payload = find_payload(storage.storage_key());
  // Storages of no elements have an entry in some versions only.
  if (payload == nullptr && storage_bytes != 0) {
    fail(label + ": its " + storage_label + " is not in the file", kDamagedHint);
  }
  if (payload != nullptr && payload->size_bytes < storage_bytes) {
    fail(label + ": its " + storage_label + " has " + std::to_string(payload->size_bytes) +
             " bytes in the file, " + std::to_string(storage_bytes) + " expected",
         kDamagedHint);
  }

  StoredTensor out;
  out.name = std::move(name);
  out.dtype = *type.dtype;
  out.shape = tensor.tensor_shape();
  out.strides = tensor.tensor_strides();
  out.file = file;
  out.offset_bytes = payload != nullptr ? payload->offset_bytes : 0;
  const auto count = checked_num_elements(out.shape);
  if (!count || !checked_num_bytes(out.dtype, out.shape)) {
    fail(label + ": the product of its axes overflows", kDamagedHint);
  }
  if (*count == 0) {
    out.strides.clear();
    return out;
  }
  // The last element's position plus one, in elements of the tensor.
  const auto [view_offset, view_size] = storage.storage_view();
  const uint64_t available = to_unsigned(view_size) * unit / static_cast<uint64_t>(type.bytes);
  std::optional<uint64_t> end = checked_add(to_unsigned(tensor.tensor_offset()), 1);
  for (size_t axis = 0; end && axis < out.shape.size(); ++axis) {
    const auto reach =
        checked_mul(to_unsigned(out.shape[axis] - 1), to_unsigned(out.strides[axis]));
    end = reach ? checked_add(*end, *reach) : std::nullopt;
  }
  if (!end || *end > available) {
    fail(label + " reaches element " + (end ? std::to_string(*end - 1) : "beyond 2^64") +
             " of its " + storage_label + ", which has " + std::to_string(available),
         kDamagedHint);
  }
  out.offset_bytes += to_unsigned(view_offset) * unit +
                      to_unsigned(tensor.tensor_offset()) * static_cast<uint64_t>(type.bytes);
  if (out.is_contiguous()) out.strides.clear();
  return out;
}

}  // namespace llmctl::formats
