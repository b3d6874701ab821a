"""What gentickets costs, beside what people use today: ratios from interleaved runs. See README.md."""
