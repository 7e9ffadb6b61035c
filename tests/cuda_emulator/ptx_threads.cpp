// Control flow, and the instructions by which threads of a block or warp meet.
#include "ptx.h"

namespace cuda_emulator::ptx {
namespace {

int barrier_of_block(Thread& thread, const Instruction& i, int number, bool predicate) {
  if (thread.read<uint32_t>(number) != 0) Thread::fail_at(i, "expected barrier 0");
  return barrier(predicate, i.place());
}

template <auto reduce>
void barrier_reduce(Thread& thread, const Instruction& i) {
  const bool predicate = thread.read<bool>(i.operands[2]);
  thread.write<uint32_t>(i.operands[0], reduce(thread, i, predicate));
}

uint32_t count(Thread& thread, const Instruction& i, bool predicate) {
  return barrier_of_block(thread, i, i.operands[1], predicate);
}
uint32_t any(Thread& thread, const Instruction& i, bool predicate) { return count(thread, i, predicate) != 0; }
uint32_t all(Thread& thread, const Instruction& i, bool predicate) { return count(thread, i, !predicate) == 0; }

uint32_t ballot(Thread& thread, const Instruction& i, bool predicate) {
  return static_cast<uint32_t>(warp_op(WarpOp::kBallot, thread.read<uint32_t>(i.operands[2]), predicate, 0, i.place()));
}

enum class Shuffle { kUp, kDown, kXor, kIndex };

// shfl.sync d|p, a, b, c, mask; c holds the last lane of a segment, and from bit 8 on which bits of a lane number its
// segment. Where the source is outside of the segment, a lane gets its own value, and p is false.
template <Shuffle mode, int has_predicate>
void shuffle(Thread& thread, const Instruction& i) {
  const int* operands = i.operands + has_predicate;
  const uint32_t b = thread.read<uint32_t>(operands[2]) & 31, c = thread.read<uint32_t>(operands[3]);
  const int lane = current_lane(), segment = c >> 8 & 31, clamp = c & 31, first = lane & segment;
  const int last = first | (clamp & ~segment);
  int source = lane;
  if (mode == Shuffle::kUp) source = lane - static_cast<int>(b);
  if (mode == Shuffle::kDown) source = lane + static_cast<int>(b);
  if (mode == Shuffle::kXor) source = lane ^ static_cast<int>(b);
  if (mode == Shuffle::kIndex) source = first | (static_cast<int>(b) & ~segment);
  const bool inside = mode == Shuffle::kUp ? source >= last : source <= last;
  const uint64_t value = warp_op(WarpOp::kShuffle, thread.read<uint32_t>(operands[4]),
                                 thread.read<uint32_t>(operands[1]), inside ? source : lane, i.place());
  thread.write<uint32_t>(i.operands[0], static_cast<uint32_t>(value));
  if (has_predicate) thread.write<bool>(i.operands[1], inside);
}

template <Shuffle mode>
void add_shuffle(InstructionSet& set, const std::string& name) {
  set["shfl.sync." + name + ".b32/5"] = shuffle<mode, 0>;
  set["shfl.sync." + name + ".b32/6"] = shuffle<mode, 1>;
}

}  // namespace

void add_threads(InstructionSet& set) {
  const Execute nothing = [](Thread&, const Instruction&) {};
  const Execute end = [](Thread& thread, const Instruction&) { thread.next = SIZE_MAX; };
  set["bra/1"] = [](Thread& thread, const Instruction& i) { thread.next = i.operands[0]; };
  set["ret/0"] = set["exit/0"] = end;
  set["trap/0"] = [](Thread&, const Instruction& i) { Thread::fail_at(i, "a trap"); };
  set["membar/0"] = set["membar.gl/0"] = set["fence/0"] = nothing;  // one CPU thread runs them all

  set["bar.sync/1"] = [](Thread& thread, const Instruction& i) { barrier_of_block(thread, i, i.operands[0], false); };
  set["bar.red.popc.u32/3"] = barrier_reduce<count>;
  set["bar.red.or.pred/3"] = barrier_reduce<any>;
  set["bar.red.and.pred/3"] = barrier_reduce<all>;

  set["bar.warp.sync/1"] = [](Thread& thread, const Instruction& i) {
    warp_op(WarpOp::kSync, thread.read<uint32_t>(i.operands[0]), 0, 0, i.place());
  };
  set["vote.sync.ballot.b32/3"] = [](Thread& thread, const Instruction& i) {
    thread.write<uint32_t>(i.operands[0], ballot(thread, i, thread.read<bool>(i.operands[1])));
  };
  set["vote.sync.any.pred/3"] = [](Thread& thread, const Instruction& i) {
    thread.write<bool>(i.operands[0], ballot(thread, i, thread.read<bool>(i.operands[1])) != 0);
  };
  set["vote.sync.all.pred/3"] = [](Thread& thread, const Instruction& i) {
    thread.write<bool>(i.operands[0], ballot(thread, i, !thread.read<bool>(i.operands[1])) == 0);
  };
  add_shuffle<Shuffle::kUp>(set, "up");
  add_shuffle<Shuffle::kDown>(set, "down");
  add_shuffle<Shuffle::kXor>(set, "bfly");
  add_shuffle<Shuffle::kIndex>(set, "idx");
}

}  // namespace cuda_emulator::ptx
