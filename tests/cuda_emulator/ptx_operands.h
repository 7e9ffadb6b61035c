// Instructions that are a function of the values of their operands.
#pragma once

#include "ptx.h"

namespace cuda_emulator::ptx {

template <typename To, typename T, auto function>
void unary(Thread& thread, const Instruction& i) {
  thread.write<To>(i.operands[0], function(thread.read<T>(i.operands[1])));
}

template <typename To, typename T, auto function>
void binary(Thread& thread, const Instruction& i) {
  thread.write<To>(i.operands[0], function(thread.read<T>(i.operands[1]), thread.read<T>(i.operands[2])));
}

template <typename To, typename T, auto function>
void ternary(Thread& thread, const Instruction& i) {
  thread.write<To>(i.operands[0], function(thread.read<T>(i.operands[1]), thread.read<T>(i.operands[2]),
                                           thread.read<To>(i.operands[3])));
}

template <typename T, auto function>
void shift(Thread& thread, const Instruction& i) {
  thread.write<T>(i.operands[0], function(thread.read<T>(i.operands[1]), thread.read<uint32_t>(i.operands[2])));
}

}  // namespace cuda_emulator::ptx
