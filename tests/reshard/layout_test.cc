#include "reshard/layout.h"

#include <doctest/doctest.h>

#include <numeric>
#include <random>
#include <set>

#include "formats/core/error.h"

using namespace llmctl;
using namespace llmctl::reshard;

namespace {

AxisSizes sizes_of(int64_t kv, int64_t group, int64_t d, int64_t hidden, int64_t ffn,
                   int64_t vocab) {
  return AxisSizes(std::map<std::string, int64_t, std::less<>>{{"kv", kv},
                                                               {"group", group},
                                                               {"two", d % 2 == 0 ? 2 : 1},
                                                               {"half", d % 2 == 0 ? d / 2 : d},
                                                               {"hidden", hidden},
                                                               {"ffn", ffn},
                                                               {"vocab", vocab},
                                                               {"position", 7},
                                                               {"width", hidden},
                                                               {"lead", 2}});
}

/// Calls visit(canonical index, stored position) for every element of a piece.
template <typename Visit>
void for_each(const Piece& piece, const Visit& visit) {
  std::vector<int64_t> index(piece.n.size(), 0);
  if (piece.num_elements() == 0) return;
  for (;;) {
    int64_t at = piece.offset;
    std::vector<int64_t> canonical = index;
    for (size_t a = 0; a < index.size(); ++a) {
      at += index[a] * piece.stride[a];
      canonical[a] += piece.lo[a];
    }
    visit(canonical, at);
    size_t a = index.size();
    while (a-- > 0 && ++index[a] == piece.n[a]) index[a] = 0;
    if (a == SIZE_MAX) return;
  }
}

}  // namespace

TEST_CASE("layout: fused rows of BLOOM lie head by head") {
  // Row (n * 3 + c) * d + k of head n, part c (0 query, 1 key, 2 value), feature k: the arrangement
  // (N, 3, d) of the FasterTransformer converters.
  const int64_t heads = 3, d = 4, hidden = 5;
  const BoundLayout bound = bind_layout(parse_layout("(kv {q group | k | v} d) hidden"),
                                        sizes_of(heads, 1, d, hidden, 8, 11), {});
  CHECK(bound.shape == Shape{3 * heads * d, hidden});
  REQUIRE(bound.pieces.size() == 3);
  for (size_t c = 0; c < 3; ++c) {
    const bool query = c == 0;
    for_each(bound.pieces[c], [&](const std::vector<int64_t>& i, int64_t at) {
      const int64_t n = i[0];
      const size_t two = query ? 2 : 1;
      const int64_t k = i[two] * (d / 2) + i[two + 1], column = i[two + 2];
      CHECK(at == ((n * 3 + static_cast<int64_t>(c)) * d + k) * hidden + column);
    });
  }
}

TEST_CASE("layout: FasterTransformer rank holds its heads of query key and value side by side") {
  const int64_t heads = 4, d = 2, hidden = 3, tp = 2;
  for (int64_t rank = 0; rank < tp; ++rank) {
    BindOptions bind;
    bind.tp = tp;
    bind.rank = rank;
    const BoundLayout bound =
        bind_layout(parse_layout("hidden {q heads/tp d | k kv/tp d | v kv/tp d}"),
                    sizes_of(heads, 1, d, hidden, 8, 11), bind);
    const int64_t local = heads * d / tp;
    CHECK(bound.shape == Shape{hidden, 3 * local});
    for_each(bound.pieces[1], [&](const std::vector<int64_t>& i, int64_t at) {
      const int64_t feature = i[0] * d + i[1] + i[2] - rank * local;  // half has one element
      CHECK(at == i[3] * 3 * local + local + feature);
    });
  }
}

TEST_CASE("layout: more ranks than key-value heads share them and split the group") {
  // 2 KV heads of 4 queries each over 4 ranks: ranks 0 and 1 read KV head 0.
  for (int64_t rank = 0; rank < 4; ++rank) {
    BindOptions bind;
    bind.tp = 4;
    bind.rank = rank;
    const BoundLayout bound =
        bind_layout(parse_layout("({q heads/tp d | k kv/tp d | v kv/tp d}) hidden"),
                    sizes_of(2, 4, 2, 3, 8, 11), bind);
    CHECK(bound.shape == Shape{(2 + 1 + 1) * 2, 3});
    const Piece& q = bound.pieces[0];
    CHECK(q.lo[0] == rank / 2);
    CHECK(q.n[0] == 1);
    CHECK(q.lo[1] == rank % 2 * 2);
    CHECK(q.n[1] == 2);
    CHECK(bound.pieces[1].lo[0] == rank / 2);
  }
}

TEST_CASE("layout: interleaved rotary order swaps the halves of a head") {
  const BoundLayout half =
      bind_layout(parse_layout("q : (heads d) hidden"), sizes_of(1, 2, 6, 1, 8, 11), {});
  const BoundLayout pairs =
      bind_layout(parse_layout("q : (heads half two) hidden"), sizes_of(1, 2, 6, 1, 8, 11), {});
  // Row j of the first half lies at 2 j among the pairs, row j of the second at 2 j + 1.
  for_each(half.pieces[0], [&](const std::vector<int64_t>& i, int64_t at) {
    CHECK(at == i[1] * 6 + i[2] * 3 + i[3]);
  });
  for_each(pairs.pieces[0], [&](const std::vector<int64_t>& i, int64_t at) {
    CHECK(at == i[1] * 6 + i[3] * 2 + i[2]);
  });
}

TEST_CASE("layout: a padded axis gives every rank the same length") {
  const Layout layout = parse_layout("embed : vocab~/tp hidden");
  const AxisSizes sizes = sizes_of(1, 1, 2, 3, 8, 10);
  std::vector<int64_t> held;
  for (int64_t rank = 0; rank < 4; ++rank) {
    BindOptions bind;
    bind.tp = 4;
    bind.rank = rank;
    const BoundLayout bound = bind_layout(layout, sizes, bind);
    CHECK(bound.shape == Shape{3, 3});
    held.push_back(bound.pieces[0].n[0]);
  }
  CHECK(held == std::vector<int64_t>{3, 3, 3, 1});
  BindOptions padded;
  padded.tp = 4;
  padded.rank = 3;
  padded.padded_sizes["vocab"] = 64;
  const BoundLayout bound = bind_layout(layout, sizes, padded);
  CHECK(bound.shape == Shape{16, 3});
  CHECK(bound.pieces[0].num_elements() == 0);
}

TEST_CASE("layout: numbered parts of an axis lie in different tensors") {
  const AxisSizes sizes = sizes_of(4, 1, 2, 3, 8, 11);
  const BoundLayout first =
      bind_layout(parse_layout("(kv[0/2] {q group | k} d) hidden"), sizes, {});
  const BoundLayout second =
      bind_layout(parse_layout("(kv[1/2] {q group | k} d) hidden"), sizes, {});
  CHECK(first.pieces[1].lo[0] == 0);
  CHECK(second.pieces[1].lo[0] == 2);
  CHECK(second.pieces[1].n[0] == 2);
}

TEST_CASE("layout: Yuan's q_proj and k_proj are the halves of one tensor of query and key rows") {
  // torch.cat([q_proj, k_proj]).view(heads, 2 d, hidden): row (2 i + c) d + k is feature k of the
  // query (c = 0) or key (c = 1) of head i, and the first heads * d rows lie in q_proj.
  const int64_t heads = 6, d = 4, hidden = 5;
  const AxisSizes sizes = sizes_of(heads, 1, d, hidden, 8, 11);
  int64_t seen = 0;
  for (int64_t half = 0; half < 2; ++half) {
    const BoundLayout bound =
        bind_layout(parse_layout(half == 0 ? "(kv[0/2] {q group | k} d) hidden"
                                           : "(kv[1/2] {q group | k} d) hidden"),
                    sizes, {});
    CHECK(bound.shape == Shape{heads * d, hidden});
    REQUIRE(bound.pieces.size() == 2);
    for (size_t c = 0; c < 2; ++c) {
      const size_t two = c == 0 ? 2 : 1;
      for_each(bound.pieces[c], [&](const std::vector<int64_t>& i, int64_t at) {
        const int64_t feature = i[two] * (d / 2) + i[two + 1];
        const int64_t row = (2 * i[0] + static_cast<int64_t>(c)) * d + feature;
        CHECK(row / (heads * d) == half);
        CHECK(at == (row - half * heads * d) * hidden + i[two + 2]);
        ++seen;
      });
    }
  }
  CHECK(seen == 2 * heads * d * hidden);
  CHECK_THROWS_WITH_AS(bind_layout(parse_layout("(kv[0/2] {q group | k} d) hidden"),
                                   sizes_of(3, 1, d, hidden, 8, 11), {}),
                       doctest::Contains("axis 'kv' of 3 does not divide into 2 parts"), Error);
}

TEST_CASE("layout: ranks of every table line hold each element once or as a declared replica") {
  const char* const lines[] = {
      "({q heads/tp d | k kv/tp d | v kv/tp d}) hidden",
      "hidden {q heads/tp d | k kv/tp d | v kv/tp d}",
      "(kv/tp {q group | k | v} d) hidden",
      "o : hidden (heads/tp d)",
      "o : (heads/tp d) hidden",
      "({gate ffn/tp | up ffn/tp}) hidden",
      "down : ffn/tp hidden",
      "embed : vocab~/tp hidden",
      "({pos_lead lead | pos position}) hidden",
      "(kv/tp d {q group | k | v}) hidden",
  };
  std::mt19937 random(7);
  for (int round = 0; round < 40; ++round) {
    const int64_t kv = int64_t{1} << (random() % 3), group = 1 + static_cast<int64_t>(random() % 3);
    const int64_t d = 1 + static_cast<int64_t>(random() % 5);
    const AxisSizes sizes =
        sizes_of(kv, group, d, 1 + random() % 4, 4 * (1 + random() % 3), 1 + random() % 9);
    for (const char* line : lines) {
      CAPTURE(line);
      const Layout layout = parse_layout(line);
      for (const int64_t tp : {1, 2, 4}) {
        if (kv % tp != 0) continue;
        std::map<std::pair<std::string, std::vector<int64_t>>, int> copies;
        for (int64_t rank = 0; rank < tp; ++rank) {
          BindOptions bind;
          bind.tp = tp;
          bind.rank = rank;
          const BoundLayout bound = bind_layout(layout, sizes, bind);
          const int64_t total = checked_num_elements(bound.shape).value();
          std::set<int64_t> taken;
          for (const Piece& piece : bound.pieces) {
            for_each(piece, [&](const std::vector<int64_t>& i, int64_t at) {
              REQUIRE(at >= 0);
              REQUIRE(at < total);
              REQUIRE(taken.insert(at).second);
              ++copies[{piece.tensor, i}];
            });
          }
          if (layout.text.find('~') == std::string::npos) {
            CHECK(static_cast<int64_t>(taken.size()) == total);
          }
        }
        int64_t expected = 0;
        for (const std::string& name : layout.tensors()) {
          expected += checked_num_elements(canonical_shape(*find_canonical(name), sizes)).value();
        }
        CHECK(static_cast<int64_t>(copies.size()) == expected);
        const int replicas = layout.uses_tensor_parallel() ? 1 : static_cast<int>(tp);
        for (const auto& [element, count] : copies) REQUIRE(count == replicas);
      }
    }
  }
}

TEST_CASE("layout: refuses what it cannot mean and says where") {
  const std::pair<const char*, const char*> bad[] = {
      {"", "column 1"},
      {"q : (heads d hidden", "expected ')'"},
      {"q : heads d hidden)", "expected an axis"},
      {"nothing : hidden", "no canonical tensor is called 'nothing'"},
      {"q : (heads d) hidden hidden", "named twice"},
      {"q : (heads d) vocab", "has no axis 'vocab'"},
      {"(heads d) hidden", "expected 'tensor :' in front"},
      {"q : heads/pp d hidden", "expected 'tp'"},
      {"q : heads[2/2] d hidden", "[k/n] with k < n"},
      {"q : heads[0/0] d hidden", "[k/n] with k < n"},
      {"{q heads d | {k kv d}} hidden", "expected a canonical tensor"},
      {"q : {k kv d} hidden", "do not nest"},
      {"q : (heads d) hidden ; norm1", "expected"},
      {"{q heads d | k kv d", "expected '}'"},
      {"q : ((((((((((((((((((heads d)))))))))))))))))) hidden", "nested"},
  };
  for (const auto& [line, reason] : bad) {
    CAPTURE(std::string(line));
    try {
      parse_layout(line);
      FAIL_CHECK("accepted");
    } catch (const Error& error) {
      CHECK(error.code() == ErrorCode::kInvalidInput);
      CAPTURE(error.what());
      CHECK(std::string(error.what()).find(reason) != std::string::npos);
    }
  }
}

TEST_CASE("layout: a tensor-parallel size that does not fit names those that do") {
  BindOptions bind;
  bind.tp = 3;
  try {
    bind_layout(parse_layout("q : (heads/tp d) hidden"), sizes_of(2, 4, 2, 3, 8, 11), bind);
    FAIL_CHECK("accepted");
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kUsage);
    CHECK(std::string(error.what()).find("use 1, 2, 4 or 8") != std::string::npos);
  }
  try {
    bind_layout(parse_layout("up : ffn/tp hidden"), sizes_of(2, 4, 2, 3, 8, 11), bind);
    FAIL_CHECK("accepted");
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kUsage);
  }
}
