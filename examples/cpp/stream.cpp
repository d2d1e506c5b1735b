// Streams a recorded book through an exported encoder: a state in, its vector out.
//
//   stream stream.pt price_ticks.npy sizes.npy [every] [cuda]
//
// price_ticks: int32 or int64 (N, L); sizes: float32 (N, L), such as those in a folder of
// training_data/book_states/. Prints the number of every `every`-th state (1: of each) and its
// vector, and to stderr the time of an update. A live program calls `update` with what its feed
// has just made of the book, and `module.run_method("reset")` after a gap.

#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <iostream>

#include "npy.h"

using torch::Tensor;

// price_ticks: int64 (1, L), ascending: bids from deepest to best, then asks from best to deepest;
// sizes: float32 (1, L). Returns the state's vector, float32 (1, D), in main memory.
Tensor update(torch::jit::Module& module, const Tensor& price_ticks, const Tensor& sizes, torch::Device device) {
  return module.forward({price_ticks.to(device), sizes.to(device)}).toTensor().cpu();
}

int main(int argc, char** argv) try {
  if (argc < 4) throw std::runtime_error("usage: stream stream.pt price_ticks.npy sizes.npy [every] [cuda]");
  const int64_t every = argc > 4 ? std::stoll(argv[4]) : 1;
  const torch::Device device(argc > 5 ? argv[5] : "cpu");
  const torch::NoGradGuard no_gradients;
  at::set_num_threads(1);
  torch::jit::Module module = torch::jit::load(argv[1], device);
  module.eval();
  NpyFile price_ticks(argv[2]), sizes(argv[3]);
  if (price_ticks.shape != sizes.shape || price_ticks.shape.size() != 2) {
    throw std::runtime_error("price_ticks and sizes must be states of one shape, (N, L)");
  }
  std::cout.precision(9);

  std::vector<double> milliseconds;
  module.run_method("reset", 1);
  for (int64_t state = 0; state < price_ticks.shape[0]; ++state) {
    const Tensor prices = price_ticks.read(1).to(torch::kInt64), amounts = sizes.read(1);
    const auto began = std::chrono::steady_clock::now();
    const Tensor vector = update(module, prices, amounts, device);
    milliseconds.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - began).count());
    if ((state + 1) % every) continue;
    std::cout << state;
    for (int64_t i = 0; i < vector.numel(); ++i) std::cout << ' ' << vector.data_ptr<float>()[i];
    std::cout << '\n';
  }
  std::sort(milliseconds.begin(), milliseconds.end());
  const auto share = [&](double q) { return milliseconds.at(static_cast<size_t>(q * (milliseconds.size() - 1))); };
  std::cerr << milliseconds.size() << " states, an update takes " << share(0.5) << " ms (p50), " << share(0.99) << " ms (p99)\n";
  return 0;
} catch (const std::exception& error) {
  std::cerr << "stream: " << error.what() << '\n';
  return 2;
}
