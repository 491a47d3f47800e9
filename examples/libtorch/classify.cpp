// Classifies an image by a package of PyTorch's, without Python:
//
//   vmamba export --checkpoint model.safetensors --format torch --output model.pt2
//   classify model.pt2 libvmamba_torch.so photo.ppm
//
// `vmamba.export.library_path("torch")` says where the library is.
#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdio>
#include <fstream>
#include <stdexcept>
#include <string>

// A binary PPM file as (1, 3, H, W), normalised as ImageNet's images. The package takes any size from 32 × 32 up.
at::Tensor read_image(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string kind;
  int64_t width = 0, height = 0, white = 0;
  if (!(file >> kind >> width >> height >> white) || kind != "P6" || white != 255)
    throw std::runtime_error(path + ": not a binary PPM file with 8 bits a channel");
  file.get();  // the end of the line
  at::Tensor pixels = at::empty({1, height, width, 3}, at::kByte);
  if (!file.read(static_cast<char*>(pixels.data_ptr()), pixels.numel())) throw std::runtime_error(path + ": cut off");
  const at::Tensor mean = at::tensor({0.485f, 0.456f, 0.406f}), std = at::tensor({0.229f, 0.224f, 0.225f});
  return ((pixels.to(at::kFloat) / 255 - mean) / std).permute({0, 3, 1, 2}).contiguous();
}

int main(int count, char** arguments) try {
  if (count != 4) throw std::runtime_error("usage: classify model.pt2 libvmamba_torch.so photo.ppm");
  // The operator that computes the scans; it registers itself.
  if (!dlopen(arguments[2], RTLD_NOW)) throw std::runtime_error(dlerror());
  const c10::InferenceMode guard;
  torch::inductor::AOTIModelPackageLoader model(arguments[1]);
  const at::Tensor logits = model.run({read_image(arguments[3])}).at(0);
  const auto [probabilities, classes] = logits.softmax(-1)[0].topk(std::min<int64_t>(5, logits.size(-1)));
  for (int64_t i = 0; i < classes.numel(); ++i)
    std::printf("%lld %.6f\n", (long long)classes[i].item<int64_t>(), probabilities[i].item<float>());
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "classify: %s\n", error.what());
  return 1;
}
