"""Applications on top of vlmopt. They are clients of its public API and contain no algorithm of their own."""
