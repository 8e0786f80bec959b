// What can be known to fail before the first byte is written.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>

namespace llmctl::reshard {

/// Throws kEnvironment when the directory that will receive `target` cannot be written, or its disk
/// has not `bytes` free. Directories on the way that are still to be made are passed over.
void check_destination(const std::filesystem::path& target, uint64_t bytes);

/// Throws kEnvironment when `buffer_bytes` and a thread's stack for each job cannot be had: the
/// address space is limited (ulimit -v), or the machine or container has less to give than as many
/// processes take together.
void check_memory(uint64_t buffer_bytes, int jobs, int processes = 1);

/// Memory that can be had without swapping: "MemAvailable" of /proc/meminfo, less where a
/// container's limit leaves less. Nothing where neither can be read.
std::optional<uint64_t> available_memory();

}  // namespace llmctl::reshard
