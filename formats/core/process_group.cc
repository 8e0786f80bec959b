#include "formats/core/process_group.h"

#include "formats/core/error.h"
#include "formats/core/message.h"

namespace llmctl {

std::vector<std::string> all_gather(ProcessGroup& group, const std::string& bytes) {
  MessageWriter together;
  for (const std::string& part : group.gather(bytes)) together.text(part);
  const std::string all = group.broadcast(together.bytes());
  std::vector<std::string> parts;
  for (MessageReader reader(all); !reader.is_at_end();) parts.emplace_back(reader.text());
  return parts;
}

void check_same(ProcessGroup& group, const std::string& what, const std::string& value,
                const std::string& hint) {
  const std::string first = group.broadcast(value);
  if (value != first) {
    throw Error(ErrorCode::kEnvironment, "is not that of rank 0", what, hint);
  }
}

}  // namespace llmctl
