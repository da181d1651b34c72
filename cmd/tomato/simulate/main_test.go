package simulate

import (
	"testing"

	"go.uber.org/goleak"
)

// A run that ended leaves nothing behind.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
