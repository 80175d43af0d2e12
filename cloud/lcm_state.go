package cloud

import "strings"

// LCMState is what a machine in StateActive is doing. Numbers are OpenNebula's; 13, 14, 55 and 58 are
// retired.
type LCMState int

// The life-cycle states of a machine on a host.
const (
	LCMInit                         LCMState = 0
	LCMProlog                       LCMState = 1
	LCMBoot                         LCMState = 2
	LCMRunning                      LCMState = 3
	LCMMigrate                      LCMState = 4
	LCMSaveStop                     LCMState = 5
	LCMSaveSuspend                  LCMState = 6
	LCMSaveMigrate                  LCMState = 7
	LCMPrologMigrate                LCMState = 8
	LCMPrologResume                 LCMState = 9
	LCMEpilogStop                   LCMState = 10
	LCMEpilog                       LCMState = 11
	LCMShutdown                     LCMState = 12
	LCMCleanupResubmit              LCMState = 15
	LCMUnknown                      LCMState = 16
	LCMHotplug                      LCMState = 17
	LCMShutdownPoweroff             LCMState = 18
	LCMBootUnknown                  LCMState = 19
	LCMBootPoweroff                 LCMState = 20
	LCMBootSuspended                LCMState = 21
	LCMBootStopped                  LCMState = 22
	LCMCleanupDelete                LCMState = 23
	LCMHotplugSnapshot              LCMState = 24
	LCMHotplugNIC                   LCMState = 25
	LCMHotplugSaveas                LCMState = 26
	LCMHotplugSaveasPoweroff        LCMState = 27
	LCMHotplugSaveasSuspended       LCMState = 28
	LCMShutdownUndeploy             LCMState = 29
	LCMEpilogUndeploy               LCMState = 30
	LCMPrologUndeploy               LCMState = 31
	LCMBootUndeploy                 LCMState = 32
	LCMHotplugPrologPoweroff        LCMState = 33
	LCMHotplugEpilogPoweroff        LCMState = 34
	LCMBootMigrate                  LCMState = 35
	LCMBootFailure                  LCMState = 36
	LCMBootMigrateFailure           LCMState = 37
	LCMPrologMigrateFailure         LCMState = 38
	LCMPrologFailure                LCMState = 39
	LCMEpilogFailure                LCMState = 40
	LCMEpilogStopFailure            LCMState = 41
	LCMEpilogUndeployFailure        LCMState = 42
	LCMPrologMigratePoweroff        LCMState = 43
	LCMPrologMigratePoweroffFailure LCMState = 44
	LCMPrologMigrateSuspend         LCMState = 45
	LCMPrologMigrateSuspendFailure  LCMState = 46
	LCMBootUndeployFailure          LCMState = 47
	LCMBootStoppedFailure           LCMState = 48
	LCMPrologResumeFailure          LCMState = 49
	LCMPrologUndeployFailure        LCMState = 50
	LCMDiskSnapshotPoweroff         LCMState = 51
	LCMDiskSnapshotRevertPoweroff   LCMState = 52
	LCMDiskSnapshotDeletePoweroff   LCMState = 53
	LCMDiskSnapshotSuspended        LCMState = 54
	LCMDiskSnapshotDeleteSuspended  LCMState = 56
	LCMDiskSnapshot                 LCMState = 57
	LCMDiskSnapshotDelete           LCMState = 59
	LCMPrologMigrateUnknown         LCMState = 60
	LCMPrologMigrateUnknownFailure  LCMState = 61
	LCMDiskResize                   LCMState = 62
	LCMDiskResizePoweroff           LCMState = 63
	LCMDiskResizeUndeployed         LCMState = 64
	LCMHotplugNICPoweroff           LCMState = 65
	LCMHotplugResize                LCMState = 66
	LCMHotplugSaveasUndeployed      LCMState = 67
	LCMHotplugSaveasStopped         LCMState = 68
	LCMBackup                       LCMState = 69
	LCMBackupPoweroff               LCMState = 70
	LCMRestore                      LCMState = 71
)

var lcmLabels = [...]label{
	LCMInit:                         {"LCM_INIT", "init"},
	LCMProlog:                       {"PROLOG", "prol"},
	LCMBoot:                         {"BOOT", "boot"},
	LCMRunning:                      {"RUNNING", "runn"},
	LCMMigrate:                      {"MIGRATE", "migr"},
	LCMSaveStop:                     {"SAVE_STOP", "save"},
	LCMSaveSuspend:                  {"SAVE_SUSPEND", "save"},
	LCMSaveMigrate:                  {"SAVE_MIGRATE", "save"},
	LCMPrologMigrate:                {"PROLOG_MIGRATE", "migr"},
	LCMPrologResume:                 {"PROLOG_RESUME", "prol"},
	LCMEpilogStop:                   {"EPILOG_STOP", "epil"},
	LCMEpilog:                       {"EPILOG", "epil"},
	LCMShutdown:                     {"SHUTDOWN", "shut"},
	LCMCleanupResubmit:              {"CLEANUP_RESUBMIT", "clea"},
	LCMUnknown:                      {"UNKNOWN", "unkn"},
	LCMHotplug:                      {"HOTPLUG", "hotp"},
	LCMShutdownPoweroff:             {"SHUTDOWN_POWEROFF", "shut"},
	LCMBootUnknown:                  {"BOOT_UNKNOWN", "boot"},
	LCMBootPoweroff:                 {"BOOT_POWEROFF", "boot"},
	LCMBootSuspended:                {"BOOT_SUSPENDED", "boot"},
	LCMBootStopped:                  {"BOOT_STOPPED", "boot"},
	LCMCleanupDelete:                {"CLEANUP_DELETE", "clea"},
	LCMHotplugSnapshot:              {"HOTPLUG_SNAPSHOT", "snap"},
	LCMHotplugNIC:                   {"HOTPLUG_NIC", "hotp"},
	LCMHotplugSaveas:                {"HOTPLUG_SAVEAS", "hotp"},
	LCMHotplugSaveasPoweroff:        {"HOTPLUG_SAVEAS_POWEROFF", "hotp"},
	LCMHotplugSaveasSuspended:       {"HOTPLUG_SAVEAS_SUSPENDED", "hotp"},
	LCMShutdownUndeploy:             {"SHUTDOWN_UNDEPLOY", "shut"},
	LCMEpilogUndeploy:               {"EPILOG_UNDEPLOY", "epil"},
	LCMPrologUndeploy:               {"PROLOG_UNDEPLOY", "prol"},
	LCMBootUndeploy:                 {"BOOT_UNDEPLOY", "boot"},
	LCMHotplugPrologPoweroff:        {"HOTPLUG_PROLOG_POWEROFF", "hotp"},
	LCMHotplugEpilogPoweroff:        {"HOTPLUG_EPILOG_POWEROFF", "hotp"},
	LCMBootMigrate:                  {"BOOT_MIGRATE", "boot"},
	LCMBootFailure:                  {"BOOT_FAILURE", "fail"},
	LCMBootMigrateFailure:           {"BOOT_MIGRATE_FAILURE", "fail"},
	LCMPrologMigrateFailure:         {"PROLOG_MIGRATE_FAILURE", "fail"},
	LCMPrologFailure:                {"PROLOG_FAILURE", "fail"},
	LCMEpilogFailure:                {"EPILOG_FAILURE", "fail"},
	LCMEpilogStopFailure:            {"EPILOG_STOP_FAILURE", "fail"},
	LCMEpilogUndeployFailure:        {"EPILOG_UNDEPLOY_FAILURE", "fail"},
	LCMPrologMigratePoweroff:        {"PROLOG_MIGRATE_POWEROFF", "migr"},
	LCMPrologMigratePoweroffFailure: {"PROLOG_MIGRATE_POWEROFF_FAILURE", "fail"},
	LCMPrologMigrateSuspend:         {"PROLOG_MIGRATE_SUSPEND", "migr"},
	LCMPrologMigrateSuspendFailure:  {"PROLOG_MIGRATE_SUSPEND_FAILURE", "fail"},
	LCMBootUndeployFailure:          {"BOOT_UNDEPLOY_FAILURE", "fail"},
	LCMBootStoppedFailure:           {"BOOT_STOPPED_FAILURE", "fail"},
	LCMPrologResumeFailure:          {"PROLOG_RESUME_FAILURE", "fail"},
	LCMPrologUndeployFailure:        {"PROLOG_UNDEPLOY_FAILURE", "fail"},
	LCMDiskSnapshotPoweroff:         {"DISK_SNAPSHOT_POWEROFF", "snap"},
	LCMDiskSnapshotRevertPoweroff:   {"DISK_SNAPSHOT_REVERT_POWEROFF", "snap"},
	LCMDiskSnapshotDeletePoweroff:   {"DISK_SNAPSHOT_DELETE_POWEROFF", "snap"},
	LCMDiskSnapshotSuspended:        {"DISK_SNAPSHOT_SUSPENDED", "snap"},
	LCMDiskSnapshotDeleteSuspended:  {"DISK_SNAPSHOT_DELETE_SUSPENDED", "snap"},
	LCMDiskSnapshot:                 {"DISK_SNAPSHOT", "snap"},
	LCMDiskSnapshotDelete:           {"DISK_SNAPSHOT_DELETE", "snap"},
	LCMPrologMigrateUnknown:         {"PROLOG_MIGRATE_UNKNOWN", "migr"},
	LCMPrologMigrateUnknownFailure:  {"PROLOG_MIGRATE_UNKNOWN_FAILURE", "fail"},
	LCMDiskResize:                   {"DISK_RESIZE", "drsz"},
	LCMDiskResizePoweroff:           {"DISK_RESIZE_POWEROFF", "drsz"},
	LCMDiskResizeUndeployed:         {"DISK_RESIZE_UNDEPLOYED", "drsz"},
	LCMHotplugNICPoweroff:           {"HOTPLUG_NIC_POWEROFF", "hotp"},
	LCMHotplugResize:                {"HOTPLUG_RESIZE", "hotp"},
	LCMHotplugSaveasUndeployed:      {"HOTPLUG_SAVEAS_UNDEPLOYED", "hotp"},
	LCMHotplugSaveasStopped:         {"HOTPLUG_SAVEAS_STOPPED", "hotp"},
	LCMBackup:                       {"BACKUP", "back"},
	LCMBackupPoweroff:               {"BACKUP_POWEROFF", "back"},
	LCMRestore:                      {"RESTORE", "rest"},
}

// String gives OpenNebula's name, such as BOOT_FAILURE; a number without a name is printed as itself.
func (l LCMState) String() string { return fullName(lcmLabels[:], int(l)) }

// ParseLCMState is the inverse of String, in any case.
func ParseLCMState(name string) (LCMState, error) {
	n, err := parseName(lcmLabels[:], "LCM state", name)
	return LCMState(n), err
}

// Failure says that a step has failed and somebody must decide: recover, or terminate.
func (l LCMState) Failure() bool { return strings.HasSuffix(l.String(), "_FAILURE") }

// Transient says that a step is under way, which ends by itself in success or failure.
func (l LCMState) Transient() bool {
	return l != LCMInit && l != LCMRunning && l != LCMUnknown && !l.Failure()
}
