package feedclient_test

import (
	"testing"

	"go.uber.org/goleak"
)

// TestMain checks that no goroutine is left after Run has returned.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
