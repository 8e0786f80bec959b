// The yardstick for resharding: a plain copy of a folder past the page cache, as fast as the disk
// takes it. 4 MiB blocks, a few threads, targets reserved first and synced at the end.
//
//     direct_copy SOURCE TARGET [THREADS]
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <thread>
#include <vector>

namespace fs = std::filesystem;

namespace {

constexpr uint64_t kBlock = uint64_t{4} << 20, kPage = 4096;

[[noreturn]] void fail(const char* what, const fs::path& path) {
  std::fprintf(stderr, "direct_copy: %s: ", path.c_str());
  std::perror(what);
  std::exit(4);
}

struct Copy {
  fs::path source, target;
  int in = -1, out = -1;
  uint64_t size = 0;
};

void copy_block(const Copy& copy, uint64_t offset, std::byte* buffer) {
  // A file's last page is copied whole and cut off at the end.
  const uint64_t bytes = std::min(kBlock, (copy.size - offset + kPage - 1) / kPage * kPage);
  for (uint64_t done = 0; done < bytes && offset + done < copy.size;) {
    const ssize_t n =
        ::pread(copy.in, buffer + done, bytes - done, static_cast<off_t>(offset + done));
    if (n <= 0) fail("read", copy.source);
    done += static_cast<uint64_t>(n);
  }
  for (uint64_t done = 0; done < bytes;) {
    const ssize_t n =
        ::pwrite(copy.out, buffer + done, bytes - done, static_cast<off_t>(offset + done));
    if (n <= 0) fail("write", copy.target);
    done += static_cast<uint64_t>(n);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fputs("direct_copy SOURCE TARGET [THREADS]\n", stderr);
    return 2;
  }
  const fs::path from = argv[1], to = argv[2];
  const int num_threads = argc > 3 ? std::atoi(argv[3]) : 2;
  fs::create_directories(to);
  std::vector<Copy> copies;
  std::vector<std::pair<size_t, uint64_t>> blocks;
  for (const auto& entry : fs::recursive_directory_iterator(from)) {
    if (!entry.is_regular_file()) continue;
    Copy copy{entry.path(), to / fs::relative(entry.path(), from), -1, -1, entry.file_size()};
    fs::create_directories(copy.target.parent_path());
    copy.in = ::open(copy.source.c_str(), O_RDONLY | O_DIRECT);
    copy.out = ::open(copy.target.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_DIRECT, 0666);
    if (copy.in < 0) fail("open", copy.source);
    if (copy.out < 0) fail("open", copy.target);
    if (copy.size > 0 && ::posix_fallocate(copy.out, 0, static_cast<off_t>(copy.size)) != 0) {
      fail("reserve", copy.target);
    }
    for (uint64_t offset = 0; offset < copy.size; offset += kBlock) {
      blocks.emplace_back(copies.size(), offset);
    }
    copies.push_back(copy);
  }
  std::atomic<size_t> next{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < num_threads; ++t) {
    threads.emplace_back([&] {
      auto* buffer = static_cast<std::byte*>(std::aligned_alloc(kPage, kBlock));
      for (size_t i = next++; i < blocks.size(); i = next++) {
        copy_block(copies[blocks[i].first], blocks[i].second, buffer);
      }
      std::free(buffer);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const Copy& copy : copies) {
    if (::ftruncate(copy.out, static_cast<off_t>(copy.size)) != 0 || ::fsync(copy.out) != 0) {
      fail("sync", copy.target);
    }
  }
  return 0;
}
