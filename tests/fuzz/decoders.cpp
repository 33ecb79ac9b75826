// The fuzz target. An input is u8 subject, modulo their number: the codecs' decoders and encoders in turn, then the fused
// linear, then a matrix in each in-memory form, and its encoder; u8 layout; then what the subject reads (codecs.h, fused.h,
// forms.h).
#include "codecs.h"
#include "forms.h"
#include "fused.h"

namespace zipmoe::fuzz {

// Whether the input was accepted, for statistics.
bool run(const uint8_t* bytes, size_t nbytes) {
  Input input{bytes, nbytes};
  const size_t subject = input.number(1) % (2 * kCodecCount + 1 + 2 * kFormCount);
  const Layout layout(input.number(1));
  if (input.nbytes > kMostWeights) return false;
  if (subject == 2 * kCodecCount) return compute_fused(layout, input);
  if (subject > 2 * kCodecCount) {
    const size_t of_form = subject - 2 * kCodecCount - 1;
    return (of_form % 2 == 0 ? compute_form : make_form)(kForms[of_form / 2], layout, input);
  }
  const Codec& codec = kCodecs[subject / 2];
  return subject % 2 == 0 ? decode(codec, layout, input) : encode(codec, layout, input);
}

}  // namespace zipmoe::fuzz

// The search for leaks needs ptrace, which containers often forbid. There is little to find: what kernels allocate belongs
// to their thread.
extern "C" const char* __asan_default_options() { return "detect_leaks=0"; }

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t nbytes) {
  zipmoe::fuzz::run(bytes, nbytes);
  return 0;
}
