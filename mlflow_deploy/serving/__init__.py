"""The scoring server that runs in every image and process: one data plane behind thin protocols."""
