from __future__ import annotations

import subprocess
import sys


def test_fabric_does_not_load_torchmetrics_and_leaves_it_to_others() -> None:
    program = (
        "import sys; import sseg_nase.training.loop\n"
        "assert 'lightning_fabric' in sys.modules\n"
        "assert 'torchmetrics' not in sys.modules\n"
        "from sseg_nase.training.fabric import without\n"
        "with without('wave'):\n"
        "    try: import wave\n"
        "    except ImportError: pass\n"
        "    else: raise AssertionError\n"
        "import wave\n"
        "with without('wave'): import wave\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
