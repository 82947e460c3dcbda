// Sparse 2-D convolutions on images in the blocked layout.
//
// Every non-zero weight ("tap") reads the image at a fixed distance from the output. A tile
// of neighbouring outputs of one channel stays in registers while all taps of the channel
// are added, so that one value is multiplied with a line of adjacent vectors. At the edges,
// taps are sorted such that those that lack the same sources are neighbours: no tap is
// tested, and no zero is multiplied. The input gradient is the same, of the incoming
// gradient with the taps of an input channel; for the weight gradient the tile holds the
// incoming gradient. Where that pays, a tile's sources are packed first, the zeros of the
// padding included, so that they stay near: see Plan.
#pragma once

#include "conv_forward.hpp"
#include "conv_weight.hpp"
