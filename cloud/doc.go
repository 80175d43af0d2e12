// Package cloud is the model: resources, their states and the transitions between them, in OpenNebula's
// words and numbers. Pure: no I/O, no clocks, no goroutines.
//
// Sizes are bytes unless the name says MB; moments are Unix nanoseconds, 0 when not reached.
package cloud
