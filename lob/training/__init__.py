"""What the trainer is made of; the training itself stands in fp8_ddp_trainer.py."""
