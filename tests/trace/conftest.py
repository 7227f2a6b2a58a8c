import os
import sys

sys.path.insert(0, os.path.dirname(__file__))
# The examples as processes, and a client for them.
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "migration"))
