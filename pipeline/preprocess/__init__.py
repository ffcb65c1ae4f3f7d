"""From encoded images and prompts to token ids and uint8 tiles: CPU work on one row, without Ray and without tables."""
