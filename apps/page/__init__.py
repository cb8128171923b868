"""Parts of the demo page. They draw what the public API reports and contain no algorithm of their own."""
