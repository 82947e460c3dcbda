// Sparse 2-D convolutions on images in the blocked layout.
#pragma once

#include "conv_forward.hpp"
#include "conv_weight.hpp"
