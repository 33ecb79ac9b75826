// Runs forced tokens through llama.cpp's own API, as benchmarks/peers/job.py writes them:
//
//     driver MODEL.gguf THREADS SEQUENCES TOKENS_PER_SEQUENCE
//
// Everything that is not named here is left as llama.cpp has it by default.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "llama.h"

namespace {

using Tokens = std::vector<llama_token>;

constexpr int kContextStep = 256;  // llama.cpp rounds a sequence's context up to this

struct Job {
    std::vector<Tokens> prompts;
    std::vector<Tokens> forced;  // one list a sequence, all of one length
};

double now_s() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::vector<Tokens> read_tokens(std::istringstream& words, int sequences, int length) {
    std::vector<Tokens> all(sequences, Tokens(length));
    for (Tokens& tokens : all)
        for (llama_token& token : tokens)
            if (!(words >> token)) throw std::runtime_error("a job has too few numbers");
    return all;
}

Job read_job(const std::string& line) {
    std::istringstream words(line);
    int sequences = 0, prompt = 0, forced = 0;
    if (!(words >> sequences >> prompt >> forced) || sequences < 1 || prompt < 1 || forced < 1)
        throw std::runtime_error("a job begins with three counts");
    Job job;
    job.prompts = read_tokens(words, sequences, prompt);
    job.forced = read_tokens(words, sequences, forced);
    return job;
}

// What is given to llama_decode at once, and which rows of it give a choice.
class Step {
public:
    explicit Step(llama_context* context)
        : context_(context), capacity_(int(llama_n_batch(context))), batch_(llama_batch_init(capacity_, 0, 1)) {
        batch_.n_tokens = 0;
    }
    Step(const Step&) = delete;
    Step& operator=(const Step&) = delete;
    ~Step() { llama_batch_free(batch_); }

    void add(llama_token token, llama_pos position, int sequence, bool choose, std::vector<Tokens>& choices) {
        if (batch_.n_tokens == capacity_) run(choices);
        const int row = batch_.n_tokens++;
        batch_.token[row] = token;
        batch_.pos[row] = position;
        batch_.n_seq_id[row] = 1;
        batch_.seq_id[row][0] = sequence;
        batch_.logits[row] = choose;
    }

    void run(std::vector<Tokens>& choices) {
        if (const int code = llama_decode(context_, batch_))
            throw std::runtime_error("llama_decode failed with " + std::to_string(code));
        const int words = llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(context_)));
        for (int row = 0; row < batch_.n_tokens; ++row) {
            if (!batch_.logits[row]) continue;
            const float* logits = llama_get_logits_ith(context_, row);
            choices[batch_.seq_id[row][0]].push_back(llama_token(std::max_element(logits, logits + words) - logits));
        }
        batch_.n_tokens = 0;
    }

private:
    llama_context* context_;
    int capacity_;
    llama_batch batch_;
};

void print_choices(const std::vector<Tokens>& choices) {
    for (size_t sequence = 0; sequence < choices.size(); ++sequence) {
        std::printf("%s[", sequence ? "," : "");
        for (size_t index = 0; index < choices[sequence].size(); ++index)
            std::printf("%s%d", index ? "," : "", choices[sequence][index]);
        std::printf("]");
    }
}

void run(llama_context* context, const Job& job) {
    llama_memory_clear(llama_get_memory(context), true);
    const int sequences = int(job.prompts.size()), prompt = int(job.prompts[0].size());
    std::vector<Tokens> choices(sequences);
    std::vector<double> times_s;
    Step step(context);
    const double begin_s = now_s();
    for (int sequence = 0; sequence < sequences; ++sequence)
        for (int position = 0; position < prompt; ++position)
            step.add(job.prompts[sequence][position], position, sequence, position == prompt - 1, choices);
    step.run(choices);
    times_s.push_back(now_s());
    std::printf("{\"first\": %.9f}\n", times_s[0]);
    std::fflush(stdout);
    for (size_t index = 0; index + 1 < job.forced[0].size(); ++index) {
        for (int sequence = 0; sequence < sequences; ++sequence)
            step.add(job.forced[sequence][index], prompt + int(index), sequence, true, choices);
        step.run(choices);
        times_s.push_back(now_s());
    }
    std::printf("{\"begin_s\": %.9f, \"times_s\": [", begin_s);
    for (size_t index = 0; index < times_s.size(); ++index) std::printf("%s%.9f", index ? ", " : "", times_s[index]);
    std::printf("], \"choices\": [");
    print_choices(choices);
    std::printf("]}\n");
    std::fflush(stdout);
}

void serve(const char* path, int threads, int sequences, int tokens) {
    llama_backend_init();
    llama_model* model = llama_model_load_from_file(path, llama_model_default_params());
    if (!model) throw std::runtime_error(std::string("llama.cpp cannot load ") + path);
    llama_context_params parameters = llama_context_default_params();
    parameters.n_seq_max = uint32_t(sequences);
    parameters.n_ctx = uint32_t(sequences * ((tokens + kContextStep - 1) / kContextStep) * kContextStep);
    parameters.n_threads = parameters.n_threads_batch = threads;
    llama_context* context = llama_init_from_model(model, parameters);
    if (!context) throw std::runtime_error("llama.cpp cannot make a context");
    std::printf("{\"ready\": {\"system\": \"%s\"}}\n", llama_print_system_info());
    std::fflush(stdout);
    for (std::string line; std::getline(std::cin, line);) run(context, read_job(line));
    llama_free(context);
    llama_model_free(model);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 5) {
        std::fprintf(stderr, "usage: driver MODEL.gguf THREADS SEQUENCES TOKENS_PER_SEQUENCE\n");
        return 2;
    }
    try {
        serve(argv[1], std::atoi(argv[2]), std::atoi(argv[3]), std::atoi(argv[4]));
    } catch (const std::exception& error) {
        std::fprintf(stderr, "driver: %s\n", error.what());
        return 1;
    }
    return 0;
}
