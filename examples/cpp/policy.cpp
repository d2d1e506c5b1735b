// Runs an exported policy on recorded windows, then goes on training it: ten PPO steps.
//
//   policy actor_critic.pt price_ticks.npy sizes.npy [cuda]
//
// price_ticks: int32 or int64 (N, T, L); sizes: float32 (N, T, L). They hold N >= 2 windows in time
// order. Prints the embedding of the last window and the policy there (probabilities of sell, hold
// and buy), then the loss of each step. `collect` makes states, actions and rewards from the
// recording: replace it by a real environment.

#include <torch/optim/adam.h>
#include <torch/script.h>
#include <torch/nn/utils/clip_grad.h>

#include <iostream>

#include "npy.h"

using torch::Tensor;

void print(const char* name, const Tensor& row) {
  const Tensor values = row.to(torch::kCPU, torch::kFloat64).contiguous();
  std::cout << name;
  for (int64_t i = 0; i < values.numel(); ++i) std::cout << ' ' << values.data_ptr<double>()[i];
  std::cout << '\n';
}

struct Rollout {
  Tensor price_ticks, sizes, states, actions, rewards_bps;
};

// Takes sell, hold and buy in turn, each without a position before it. The reward is the new
// position times the move of the mid until the last state of the next window, in bps.
Rollout collect(const Tensor& price_ticks, const Tensor& sizes, int64_t state_features) {
  const int64_t steps = price_ticks.size(0) - 1, half = price_ticks.size(2) / 2;
  const Tensor now = price_ticks.select(1, -1).to(torch::kFloat64);
  const Tensor mid = (now.select(1, half - 1) + now.select(1, half)) / 2;
  const Tensor move_bps = (mid.slice(0, 1) / mid.slice(0, 0, steps) - 1) * 1e4;
  const Tensor actions = torch::arange(steps, torch::TensorOptions(torch::kInt64).device(price_ticks.device())) % 3;
  const Tensor states = torch::zeros({steps, state_features}, sizes.options());
  return {price_ticks.slice(0, 0, steps), sizes.slice(0, 0, steps), states, actions,
          ((actions - 1) * move_bps).to(torch::kFloat32)};
}

std::pair<Tensor, Tensor> run(torch::jit::Module& module, const Rollout& data) {
  const auto outputs = module.forward({data.price_ticks, data.sizes, data.states}).toTuple();
  return {torch::log_softmax(outputs->elements()[0].toTensor(), 1), outputs->elements()[1].toTensor()};
}

Tensor chosen(const Tensor& log_policy, const Tensor& actions) {
  return log_policy.gather(1, actions.unsqueeze(1)).squeeze(1);
}

// PPO (Schulman et al. 2017, arXiv:1707.06347): clipped surrogate, squared error of the value,
// entropy bonus.
void train(torch::jit::Module& module, const Rollout& data, int steps) {
  module.train();
  std::vector<Tensor> parameters;
  for (const Tensor& parameter : module.parameters()) {
    if (parameter.requires_grad()) parameters.push_back(parameter);  // not those of a frozen encoder
  }
  torch::optim::Adam optimizer(parameters, torch::optim::AdamOptions(3e-4).eps(1e-5));
  Tensor before, advantage;
  for (int step = 0; step < steps; ++step) {
    const auto [log_policy, value] = run(module, data);
    const Tensor taken = chosen(log_policy, data.actions);
    if (step == 0) {
      before = taken.detach();
      advantage = data.rewards_bps - value.detach();
      advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8);
    }
    const Tensor ratio = (taken - before).exp();
    const Tensor surrogate = torch::min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean();
    const Tensor entropy = -(log_policy.exp() * log_policy).sum(1).mean();
    const Tensor loss = -surrogate + 0.5 * (value - data.rewards_bps).square().mean() - 0.01 * entropy;
    optimizer.zero_grad();
    loss.backward();
    torch::nn::utils::clip_grad_norm_(parameters, 0.5);
    optimizer.step();
    print("loss", loss.detach());
  }
  module.eval();
}

int main(int argc, char** argv) try {
  if (argc < 4) throw std::runtime_error("usage: policy actor_critic.pt price_ticks.npy sizes.npy [cuda]");
  const torch::Device device(argc > 4 ? argv[4] : "cpu");
  torch::jit::Module module = torch::jit::load(argv[1], device);
  const Tensor price_ticks = read_npy(argv[2]).to(device, torch::kInt64), sizes = read_npy(argv[3]).to(device);
  const int64_t state_features = module.attr("state_features").toInt();
  std::cout.precision(17);

  module.eval();
  const Rollout data = collect(price_ticks, sizes, state_features);
  {
    torch::NoGradGuard no_gradients;
    const Tensor last = module.get_method("embed")({price_ticks.slice(0, -1), sizes.slice(0, -1)}).toTensor();
    const Tensor state = torch::zeros({1, state_features}, sizes.options());
    const auto outputs = module.get_method("heads")({last, state}).toTuple();
    print("embedding", last);
    print("policy", torch::softmax(outputs->elements()[0].toTensor(), 1));
  }
  train(module, data, 10);
  return 0;
} catch (const std::exception& error) {
  std::cerr << "policy: " << error.what() << '\n';
  return 2;
}
