"""What a fresh process waits for: the import, and the first call."""

import subprocess
import sys

FIRST_CALL = """
import numpy, numbagru
numbagru.GRU(32, return_sequences=True)(numpy.ones((4, 10, 3), "float32"))
"""
COLD = f"""
import os, tempfile
with tempfile.TemporaryDirectory() as os.environ["NUMBA_CACHE_DIR"]:
    {FIRST_CALL.strip().replace(chr(10), chr(10) + "    ")}
"""


class Start:
    number = 1

    def timeraw_import_numba(self):
        return "import numba"

    def timeraw_import(self):
        return "import numbagru"


class FirstCall:
    number = 1

    def setup(self):
        subprocess.run([sys.executable, "-c", FIRST_CALL], check=True)

    def timeraw_warm_cache(self):
        return FIRST_CALL


class Compile:
    number = repeat = 1
    timeout = 300

    def timeraw_cold_cache(self):
        return COLD
