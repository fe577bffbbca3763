"""What is known of model files and architectures: a folder, file or Hub id in; configs, rows and facts out."""
