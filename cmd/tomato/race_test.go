//go:build race

package main_test

// raceDetector says whether the race detector is in, which makes everything
// several times as slow.
const raceDetector = true
