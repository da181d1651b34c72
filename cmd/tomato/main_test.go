package main

import (
	"os"
	"slices"
	"testing"

	"tomato/cmd/tomato/servertest"
)

func TestMain(m *testing.M) {
	if os.Getenv(servertest.AsTomato) != "" && !slices.Contains(os.Args, "-test.fuzzworker") { // those inherit it
		main()
	}
	if err := os.Setenv(servertest.AsTomato, "1"); err != nil {
		panic(err)
	}
	servertest.RunMoreAtOnce()
	code := m.Run()
	servertest.RemoveBuilds()
	os.Exit(code)
}
