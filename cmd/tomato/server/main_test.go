package server_test

import (
	"os"
	"testing"

	"tomato/cmd/tomato/servertest"
)

func TestMain(m *testing.M) {
	servertest.RunMoreAtOnce()
	os.Exit(m.Run())
}
