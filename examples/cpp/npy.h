// Reads arrays of numpy's .npy files, whole or a few rows at a time.

#pragma once

#include <torch/script.h>

#include <fstream>
#include <regex>
#include <stdexcept>
#include <string>
#include <vector>

class NpyFile {
 public:
  std::vector<int64_t> shape;

  explicit NpyFile(const std::string& path) : path_(path), file_(path, std::ios::binary) {
    char start[10];
    if (!file_.read(start, 10) || std::string(start, 6) != "\x93NUMPY" || start[6] != 1) {
      throw std::runtime_error(path + " is no .npy file of version 1");
    }
    const auto byte = [&](int i) { return static_cast<unsigned char>(start[i]); };
    std::string header(byte(8) + 256 * byte(9), ' ');
    file_.read(header.data(), header.size());
    std::smatch found;
    const std::regex form("'descr': '<(i4|i8|f4)', 'fortran_order': False, 'shape': \\(([^)]*)\\)");
    if (!std::regex_search(header, found, form)) {
      throw std::runtime_error(path + " is not a little-endian int32, int64 or float32 array in C order");
    }
    dtype_ = found[1] == "i4" ? torch::kInt32 : found[1] == "i8" ? torch::kInt64 : torch::kFloat32;
    const std::string shape_text = found[2];
    const std::regex number("\\d+");
    for (std::sregex_iterator n(shape_text.begin(), shape_text.end(), number), end; n != end; ++n) {
      shape.push_back(std::stoll(n->str()));
    }
  }

  // Returns the next rows, (rows, ...).
  torch::Tensor read(int64_t rows) {
    std::vector<int64_t> wanted = shape;
    wanted.at(0) = rows;
    torch::Tensor array = torch::empty(wanted, dtype_);
    if (!file_.read(static_cast<char*>(array.data_ptr()), array.nbytes())) throw std::runtime_error(path_ + " is cut off");
    return array;
  }

 private:
  std::string path_;
  std::ifstream file_;
  torch::ScalarType dtype_;
};

inline torch::Tensor read_npy(const std::string& path) {
  NpyFile file(path);
  return file.read(file.shape.at(0));
}
