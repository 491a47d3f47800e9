// Classifies an image by an ONNX file that prepares its images itself:
//
//   vmamba export --checkpoint model.safetensors --with-preprocessing --output model.onnx
//   classify model.onnx photo.ppm [libvmamba_onnxruntime.so]
//
// With the library, which `vmamba.ort.library_path()` names, the scans run on our kernels.
#include <onnxruntime_c_api.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

const OrtApi* ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);

void check(OrtStatus* status) {
  if (status) throw std::runtime_error(ort->GetErrorMessage(status));
}

// A binary PPM file: its shape (1, H, W, 3), and the pixels.
std::vector<unsigned char> read_image(const std::string& path, int64_t (&shape)[4]) {
  std::ifstream file(path, std::ios::binary);
  std::string kind;
  int64_t width = 0, height = 0, white = 0;
  if (!(file >> kind >> width >> height >> white) || kind != "P6" || white != 255)
    throw std::runtime_error(path + ": not a binary PPM file with 8 bits a channel");
  file.get();  // the end of the line
  std::vector<unsigned char> pixels(3 * width * height);
  if (!file.read(reinterpret_cast<char*>(pixels.data()), pixels.size())) throw std::runtime_error(path + ": cut off");
  shape[0] = 1, shape[1] = height, shape[2] = width, shape[3] = 3;
  return pixels;
}

int main(int count, char** arguments) try {
  if (!ort) throw std::runtime_error("this ONNX Runtime is older than the headers");
  if (count != 3 && count != 4) throw std::runtime_error("usage: classify model.onnx photo.ppm [library]");
  int64_t shape[4];
  std::vector<unsigned char> pixels = read_image(arguments[2], shape);
  OrtEnv* env;
  OrtSessionOptions* options;
  OrtSession* session;
  OrtMemoryInfo* memory;
  OrtValue *image, *result = nullptr;
  check(ort->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "classify", &env));
  check(ort->CreateSessionOptions(&options));
  if (count == 4) check(ort->RegisterCustomOpsLibrary_V2(options, arguments[3]));
  check(ort->CreateSession(env, arguments[1], options, &session));
  check(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
  check(ort->CreateTensorWithDataAsOrtValue(memory, pixels.data(), pixels.size(), shape, 4,
                                            ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, &image));
  const char *input = "pixels", *output = "logits";
  check(ort->Run(session, nullptr, &input, &image, 1, &output, 1, &result));
  float* logits;
  OrtTensorTypeAndShapeInfo* info;
  size_t classes;
  check(ort->GetTensorMutableData(result, reinterpret_cast<void**>(&logits)));
  check(ort->GetTensorTypeAndShape(result, &info));
  check(ort->GetTensorShapeElementCount(info, &classes));
  std::vector<size_t> order(classes);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return logits[a] > logits[b]; });
  for (size_t i = 0; i < std::min<size_t>(5, classes); ++i) std::printf("%zu %.6f\n", order[i], logits[order[i]]);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "classify: %s\n", error.what());
  return 1;
}
