/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * guest.S - a boot sector that writes for ever; what it writes is told in guest.py.
 *
 *     as --32 guest.S -o guest.o && objcopy -O binary -j .text guest.o guest.bin
 *
 * The BIOS loads it to 0x7c00, with the drive's number in DL.  Numbers at 0xa0 and the packet at 0xb0 are
 * filled in by guest.py.
 */
        .code16
        .set    BUFFER, 0x8000
        .globl  _start
_start:
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    $0x7c00, %sp
        cld
        movb    %dl, 0x7c00 + drive
        movw    $0x7c00 + packet, %si
        movb    $0x42, %ah              /* read: which generation was the last to begin? */
        int     $0x13
        movl    BUFFER, %ebp
next_pass:
        incl    %ebp                    /* EBP: the generation that is written */
        movl    0x7c00 + range, %eax
        movl    %eax, 0x7c00 + sector
next_record:
        movw    $BUFFER, %di
        movl    0x7c00 + sector, %edx
        movw    $8, %bx                 /* sectors of a record */
fill_sector:
        movw    $64, %cx                /* pairs of a sector */
fill_pair:
        movl    %ebp, %eax
        stosl
        movl    %edx, %eax
        stosl
        loop    fill_pair
        incl    %edx
        decw    %bx
        jnz     fill_sector
        movl    %edx, 0x7c00 + after    /* the BIOS may not keep it */
        movb    0x7c00 + drive, %dl
        movw    $0x7c00 + packet, %si
        movw    $0x4300, %ax            /* write */
        int     $0x13
        movb    $'!', %al
        jc      tell                    /* it failed: say so, and try again */
        movl    0x7c00 + after, %eax
        movl    %eax, 0x7c00 + sector
        cmpl    0x7c00 + range + 4, %eax
        jb      next_record
        movb    $'.', %al
        movw    $0x3f8, %dx
        outb    %al, %dx
        jmp     next_pass
tell:
        movw    $0x3f8, %dx
        outb    %al, %dx
        jmp     next_record
drive:  .byte   0
after:  .long   0

        .org    0xa0
range:  .long   0, 0                    /* first sector, and the one after the last */
        .org    0xb0
packet: .byte   16, 0                   /* INT 13h extensions: disk address packet */
        .word   8
        .word   BUFFER, 0
sector: .long   0, 0
