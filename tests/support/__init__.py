"""What several tests share: places, the command line, tiny networks, exactness, a stand-in for the Hub."""
