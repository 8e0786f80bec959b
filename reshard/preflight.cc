#include "reshard/preflight.h"

#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <optional>
#include <sstream>
#include <string>

#include "formats/core/error.h"

namespace llmctl::reshard {

namespace fs = std::filesystem;

namespace {

/// The nearest directory above that exists.
fs::path existing_parent(const fs::path& target) {
  fs::path parent = target.has_parent_path() ? target.parent_path() : fs::path(".");
  std::error_code ec;
  // What may not be looked at stops the search: it is the one to complain about.
  while (!fs::exists(parent, ec) && ec != std::errc::permission_denied) {
    if (!parent.has_parent_path() || parent.parent_path() == parent) return ".";
    parent = parent.parent_path();
  }
  return parent;
}

/// What the limit on the address space leaves; nothing without a limit.
std::optional<uint64_t> address_space_left() {
  struct rlimit limit {};
  if (::getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return std::nullopt;
  uint64_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  const uint64_t used = pages * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  return limit.rlim_cur - std::min<uint64_t>(limit.rlim_cur, used);
}

}  // namespace

std::optional<uint64_t> available_memory() {
  std::optional<uint64_t> available;
  std::ifstream meminfo("/proc/meminfo");
  std::string word;
  while (meminfo >> word) {
    uint64_t kilobytes = 0;
    if (word == "MemAvailable:" && meminfo >> kilobytes) available = kilobytes << 10;
  }
  uint64_t most = 0, used = 0;
  if ((std::ifstream("/sys/fs/cgroup/memory.max") >> most) &&
      (std::ifstream("/sys/fs/cgroup/memory.current") >> used)) {
    // The page cache counts as used there, and makes room when asked.
    std::ifstream stat("/sys/fs/cgroup/memory.stat");
    uint64_t cache = 0, value = 0;
    while (stat >> word >> value) {
      if (word == "file") cache = value;
    }
    const uint64_t taken = used - std::min(used, cache);
    const uint64_t left = most - std::min(most, taken);
    available = std::min(available.value_or(left), left);
  }
  return available;
}

void check_destination(const fs::path& target, uint64_t bytes) {
  const fs::path parent = existing_parent(target);
  std::error_code ec;
  if (const auto status = fs::status(parent, ec); fs::exists(status) && !fs::is_directory(status)) {
    throw Error(ErrorCode::kEnvironment,
                "is no directory, and " + target.string() + " would lie below it", parent.string(),
                "choose another destination");
  }
  if (::access(parent.c_str(), W_OK | X_OK) != 0 && (errno == EACCES || errno == EROFS)) {
    const bool read_only = errno == EROFS;
    throw Error(ErrorCode::kEnvironment,
                read_only ? "the file system is read-only" : "no permission to write here",
                parent.string(), "choose another destination");
  }
  struct statvfs disk {};
  if (::statvfs(parent.c_str(), &disk) != 0) return;
  const uint64_t free_bytes = static_cast<uint64_t>(disk.f_bavail) * disk.f_frsize;
  if (free_bytes < bytes) {
    throw Error(
        ErrorCode::kEnvironment,
        std::to_string(bytes) + " bytes are needed, " + std::to_string(free_bytes) + " are free",
        parent.string(), "free some disk space or choose another destination");
  }
}

void check_memory(uint64_t buffer_bytes, int jobs, int processes) {
  // glibc maps 8 MiB of stack and up to 64 MiB of heap addresses for a thread.
  const uint64_t addresses = buffer_bytes + static_cast<uint64_t>(jobs) * (uint64_t{72} << 20);
  const auto refuse = [](const std::string& where, uint64_t needed, uint64_t left,
                         const std::string& hint) {
    throw Error(ErrorCode::kEnvironment,
                std::to_string(needed) + " bytes are needed, " + std::to_string(left) + " are left",
                where, hint);
  };
  if (const auto left = address_space_left(); left && *left < addresses) {
    refuse("address space", addresses, *left,
           "raise the limit (ulimit -v), or give a smaller --max-memory or fewer --jobs");
  }
  const uint64_t together = buffer_bytes * static_cast<uint64_t>(std::max(1, processes));
  if (const auto left = available_memory(); left && *left < together) {
    refuse("memory", together, *left, "free some memory or give a smaller --max-memory");
  }
}

}  // namespace llmctl::reshard
