package main

import (
	"os"
	"slices"
	"testing"
)

// asTomato makes the test binary the tomato binary: tests start it as a process of
// its own, to kill it.
const asTomato = "TOMATO_BENCH_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(asTomato) != "" && !slices.Contains(os.Args, "-test.fuzzworker") { // those inherit it
		main()
	}
	if err := os.Setenv(asTomato, "1"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}
