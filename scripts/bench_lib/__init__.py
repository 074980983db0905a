"""What scripts/bench is made of: the machine, trees and stores to measure with, the peers, and one file for each part."""
