#include <algorithm>

#include "formats/core/cancel.h"
#include "formats/core/error.h"
#include "reshard/box.h"
#include "reshard/executor.h"
#include "reshard/model.h"
#include "reshard/whole_replicas.h"

namespace llmctl::reshard {
namespace {

constexpr int64_t kBlockElements = int64_t{4} << 20;

/// Compares the elements of `box`, some rows at a time.
bool hold_the_same(const Model& model, const SourcePiece& a, const SourcePiece& b,
                   const IndexBox& box) {
  int64_t width = 1;
  for (size_t axis = 1; axis < box.n.size(); ++axis) width *= box.n[axis];
  const int64_t step = std::max<int64_t>(1, kBlockElements / std::max<int64_t>(1, width));
  for (int64_t row = 0; row < box.n[0]; row += step) {
    throw_if_cancelled();
    IndexBox part = box;
    part.lo[0] += row;
    part.n[0] = std::min(step, box.n[0] - row);
    if (read_box(model, a, part) != read_box(model, b, part)) return false;
  }
  return true;
}

}  // namespace

void check_replicas(const Model& model) { check_replicas(model, nullptr); }

void check_replicas(const Model& model, const WholeReplicas* apart, int part, int num_parts) {
  int index = 0;
  for (const std::string& key : model.keys()) {
    if (index++ % num_parts != part) continue;
    const std::vector<SourcePiece>& pieces = model.pieces(key);
    for (size_t j = 1; j < pieces.size(); ++j) {
      // What earlier pieces hold has been compared among them: once each is enough.
      std::vector<IndexBox> rest = {IndexBox::of(pieces[j].piece)};
      for (size_t i = 0; i < j && !rest.empty(); ++i) {
        const IndexBox held = IndexBox::of(pieces[i].piece);
        for (const IndexBox& box : rest) {
          const auto shared = intersect(box, held);
          if (shared && apart != nullptr &&
              apart->are_the_same(pieces[i].tensor, pieces[j].tensor)) {
            continue;
          }
          if (!shared || hold_the_same(model, pieces[i], pieces[j], *shared)) continue;
          const auto& tensors = model.checkpoint().tensors;
          throw_invalid(model.checkpoint().path.string(),
                        stored_name(tensors[static_cast<size_t>(pieces[i].tensor)]) + " and " +
                            stored_name(tensors[static_cast<size_t>(pieces[j].tensor)]) +
                            " should hold the same values of '" + key + "', and differ",
                        "the ranks are not of one checkpoint");
        }
        rest = subtract(rest, held);
      }
    }
  }
}

}  // namespace llmctl::reshard
