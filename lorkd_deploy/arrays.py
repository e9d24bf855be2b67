"""Array types by their element, as the annotations name them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F16 = npt.NDArray[np.float16]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
Batch = F32 | U8  # what an engine takes: network inputs, or the images themselves
