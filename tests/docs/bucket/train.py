print("stands for the training of a user")
