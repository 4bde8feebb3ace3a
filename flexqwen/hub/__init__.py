"""What goes to the Hugging Face Hub and comes back: runs, cards, datasets, plain Qwen3 exports."""
