#include "kernels/panels.h"

#include "formats/core/error.h"
#include "kernels/cpu/dispatch.h"
#include "tests/kernels/kernel_test.h"

namespace llmctl {
namespace {

using kernels::Isa;
using test::random_floats;
using test::same_bytes;
using test::stored_as;

constexpr DType kDTypes[] = {DType::F32, DType::F16, DType::BF16};
constexpr std::pair<int64_t, int64_t> kSizes[] = {{1, 1},   {1, 2},   {15, 3},   {16, 16}, {17, 5},
                                                  {32, 33}, {48, 64}, {50, 129}, {70, 2},  {16, 0}};

std::vector<unsigned char> random_matrix(int64_t rows, int64_t columns, DType dtype) {
  return stored_as(random_floats(static_cast<size_t>(rows * columns), 11), dtype);
}

size_t bytes_of(DType dtype, int64_t rows, int64_t columns) {
  return static_cast<size_t>(kernels::matrix_panel_bytes(dtype, rows, columns).value());
}

}  // namespace

TEST_CASE("panels: a line of the cache holds the same columns of all 16 rows") {
  // 4-byte lanes: F32 one column, BF16 two; F16 has 16 rows of one column, then of the next.
  CHECK(kernels::panel_offset(DType::F32, 10, 3, 0) == 12);
  CHECK(kernels::panel_offset(DType::F32, 10, 3, 1) == 64 + 12);
  CHECK(kernels::panel_offset(DType::F32, 10, 19, 1) == 640 + 64 + 12);
  CHECK(kernels::panel_offset(DType::BF16, 10, 3, 0) == 12);
  CHECK(kernels::panel_offset(DType::BF16, 10, 3, 1) == 14);
  CHECK(kernels::panel_offset(DType::BF16, 10, 3, 2) == 64 + 12);
  CHECK(kernels::panel_offset(DType::BF16, 9, 16, 0) == 5 * 64);
  CHECK(kernels::panel_offset(DType::F16, 10, 3, 0) == 6);
  CHECK(kernels::panel_offset(DType::F16, 10, 3, 1) == 32 + 6);
  CHECK(kernels::panel_offset(DType::F16, 9, 16, 0) == 9 * 32);
}

TEST_CASE("panels: sizes are whole panels and groups and do not overflow unnoticed") {
  CHECK(kernels::matrix_panel_bytes(DType::BF16, 16, 8) == 256);
  CHECK(kernels::matrix_panel_bytes(DType::BF16, 17, 7) == 512);
  CHECK(kernels::matrix_panel_bytes(DType::F16, 17, 7) == 2 * 7 * 32);
  CHECK(kernels::matrix_panel_bytes(DType::F32, 0, 7) == 0);
  CHECK(!kernels::matrix_panel_bytes(DType::F32, -1, 7));
  CHECK(!kernels::matrix_panel_bytes(DType::F32, INT64_MAX, 1));
  CHECK(!kernels::matrix_panel_bytes(DType::BF16, 1, INT64_MAX));
}

TEST_CASE("panels: packing equals the element-wise formula on every ISA") {
  for (const DType dtype : kDTypes) {
    for (const auto& [rows, columns] : kSizes) {
      CAPTURE(dtype_name(dtype));
      CAPTURE(rows);
      CAPTURE(columns);
      const auto matrix = random_matrix(rows, columns, dtype);
      std::vector<unsigned char> want(bytes_of(dtype, rows, columns), 0xAA);
      kernels::reference::pack_panels(want.data(), matrix.data(), dtype, rows, columns);
      for (const Isa isa : kernels::available_isas()) {
        CAPTURE(kernels::isa_name(isa));
        std::vector<unsigned char> got(want.size(), 0x55);
        kernels::cpu::pack_panels(isa, got.data(), matrix.data(), dtype, rows, columns);
        CHECK(same_bytes(got, want));
        std::vector<unsigned char> back(matrix.size(), 0x55);
        kernels::cpu::unpack_panels(isa, back.data(), want.data(), dtype, rows, columns);
        CHECK(same_bytes(back, matrix));
      }
    }
  }
}

TEST_CASE("panels: packing in place gives the same bytes for any number of threads") {
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    for (const DType dtype : kDTypes) {
      for (const auto& [rows, columns] : kSizes) {
        CAPTURE(threads);
        CAPTURE(dtype_name(dtype));
        CAPTURE(rows);
        CAPTURE(columns);
        const auto matrix = random_matrix(rows, columns, dtype);
        std::vector<unsigned char> want(bytes_of(dtype, rows, columns));
        kernels::reference::pack_panels(want.data(), matrix.data(), dtype, rows, columns);
        for (const Isa isa : kernels::available_isas()) {
          CAPTURE(kernels::isa_name(isa));
          std::vector<unsigned char> data(want.size(), 0x55);
          std::copy(matrix.begin(), matrix.end(), data.begin());
          kernels::cpu::pack_panels_in_place(isa, data.data(), dtype, rows, columns, pool);
          CHECK(same_bytes(data, want));
        }
      }
    }
  }
}

TEST_CASE("panels: a matrix can be packed piece by piece and cut at panels") {
  const int64_t rows = 70;
  const int64_t columns = 9;
  const auto matrix = random_matrix(rows, columns, DType::BF16);
  std::vector<unsigned char> whole(bytes_of(DType::BF16, rows, columns));
  kernels::pack_panels(whole.data(), matrix.data(), DType::BF16, rows, columns);
  std::vector<unsigned char> pieces(whole.size());
  const kernels::PanelMatrix all{pieces.data(), DType::BF16, rows, columns};
  for (const auto& [first, count] : {std::pair{48, 22}, {0, 32}, {32, 16}}) {
    const kernels::PanelMatrix part = kernels::panel_rows(all, first, count);
    CHECK(part.rows == count);
    kernels::pack_panels(const_cast<void*>(part.data), matrix.data() + first * columns * 2,
                         DType::BF16, count, columns);
  }
  CHECK(same_bytes(pieces, whole));
  CHECK_THROWS_AS(kernels::panel_rows(all, 8, 16), Error);
  CHECK_THROWS_AS(kernels::panel_rows(all, 64, 7), Error);
}

}  // namespace llmctl
