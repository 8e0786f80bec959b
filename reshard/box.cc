#include "reshard/box.h"

#include <algorithm>

namespace llmctl::reshard {

bool IndexBox::is_empty() const {
  return std::any_of(n.begin(), n.end(), [](int64_t extent) { return extent <= 0; });
}

int64_t IndexBox::num_elements() const {
  int64_t count = 1;
  for (const int64_t extent : n) count *= std::max<int64_t>(extent, 0);
  return count;
}

std::string IndexBox::text() const {
  std::string out = "[";
  for (size_t a = 0; a < lo.size(); ++a) {
    out += (a ? ", " : "") + std::to_string(lo[a]) + ":" + std::to_string(lo[a] + n[a]);
  }
  return out + "]";
}

std::optional<IndexBox> intersect(const IndexBox& a, const IndexBox& b) {
  IndexBox out{Shape(a.lo.size()), Shape(a.lo.size())};
  for (size_t axis = 0; axis < a.lo.size(); ++axis) {
    const int64_t lo = std::max(a.lo[axis], b.lo[axis]);
    const int64_t hi = std::min(a.lo[axis] + a.n[axis], b.lo[axis] + b.n[axis]);
    if (lo >= hi) return std::nullopt;
    out.lo[axis] = lo;
    out.n[axis] = hi - lo;
  }
  return out;
}

std::vector<IndexBox> subtract(const std::vector<IndexBox>& boxes, const IndexBox& cut) {
  std::vector<IndexBox> out;
  for (const IndexBox& box : boxes) {
    if (box.is_empty()) continue;
    const auto shared = intersect(box, cut);
    if (!shared) {
      out.push_back(box);
      continue;
    }
    // Slice off what lies before and after the shared part, axis by axis.
    IndexBox rest = box;
    for (size_t a = 0; a < rest.lo.size(); ++a) {
      if (rest.lo[a] < shared->lo[a]) {
        IndexBox before = rest;
        before.n[a] = shared->lo[a] - rest.lo[a];
        out.push_back(std::move(before));
      }
      const int64_t shared_end = shared->lo[a] + shared->n[a];
      if (rest.lo[a] + rest.n[a] > shared_end) {
        IndexBox after = rest;
        after.lo[a] = shared_end;
        after.n[a] = rest.lo[a] + rest.n[a] - shared_end;
        out.push_back(std::move(after));
      }
      rest.lo[a] = shared->lo[a];
      rest.n[a] = shared->n[a];
    }
  }
  return out;
}

}  // namespace llmctl::reshard
